"""Makes what old releases of LangGraph's savers stored: `python -m tests.support.make_old_releases FOLDER`.

Each runs `old_application` in a virtual environment of its own, with what was released at its time. What was made is
never made again: it stands for the databases that applications have. It needs the network and `uv`.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import psycopg

from tests.support.postgres import ClusterTemplate

RELEASES = {
    "sqlite-1.0.0": ("2024-09-01", "langgraph==0.2.14", "langgraph-checkpoint-sqlite==1.0.0"),
    "postgres-2.0.8": ("2024-12-20", "langgraph==0.2.60", "langgraph-checkpoint-postgres==2.0.8", "psycopg[binary]"),
    "postgres-2.0.21": ("2025-05-20", "langgraph==0.4.5", "langgraph-checkpoint-postgres==2.0.21", "psycopg[binary]"),
}
"""By the name of the file: the day whose packages were installed, and which."""

TABLES = ("checkpoint_migrations", "checkpoints", "checkpoint_blobs", "checkpoint_writes")

RUN_SQLITE = """
import sys
from langgraph.checkpoint.sqlite import SqliteSaver
from tests.support.old_application import run
with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
    run(saver)
"""
RUN_POSTGRES = """
import sys
from langgraph.checkpoint.postgres import PostgresSaver
from tests.support.old_application import run
with PostgresSaver.from_conn_string(sys.argv[1]) as saver:
    saver.setup()
    run(saver)
"""
TABLES_POSTGRES = """
from langgraph.checkpoint.postgres import PostgresSaver
print(";\\n\\n".join(text.strip().rstrip(";") for text in PostgresSaver.MIGRATIONS).replace(" CONCURRENTLY", ""))
"""


def make(folder: Path, database_url: str) -> None:
    """Write the files that are not there yet."""
    for name, (day, *packages) in RELEASES.items():
        file = folder / (f"{name}.sqlite" if name.startswith("sqlite") else f"{name}.sql")
        if file.exists():
            continue
        with tempfile.TemporaryDirectory() as environment:
            python = str(Path(environment) / "bin" / "python")
            subprocess.run(["uv", "venv", "-q", "--clear", "--python", "3.11", environment], check=True)
            install = ["uv", "pip", "install", "-q", "--python", python, "--exclude-newer", day]
            subprocess.run([*install, *packages], check=True)
            if file.suffix == ".sqlite":
                subprocess.run([python, "-c", RUN_SQLITE, str(file)], check=True)
                with closing(sqlite3.connect(file)) as connection:
                    connection.execute("PRAGMA journal_mode = DELETE")
                    connection.execute("VACUUM")
                continue
            with psycopg.connect(database_url, autocommit=True) as session:
                session.execute(f"DROP TABLE IF EXISTS {', '.join(TABLES)}".encode())
                subprocess.run([python, "-c", RUN_POSTGRES, database_url], check=True)
                tables = subprocess.run([python, "-c", TABLES_POSTGRES], check=True, capture_output=True, text=True)
                file.write_text(tables.stdout.strip() + ";\n\n" + "\n".join(rows_of(session)) + "\n", encoding="utf-8")


def rows_of(session: psycopg.Connection) -> list[str]:
    """All rows as statements that insert them."""
    found: list[str] = []
    for table in TABLES:
        kinds = session.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position",
            (table,),
        ).fetchall()
        columns = ", ".join(name for (name,) in kinds)
        quoted = ", ".join(f"quote_nullable({name}::text)" for (name,) in kinds)
        rows = session.execute(f"SELECT {quoted} FROM {table} ORDER BY {columns.split(', type')[0]}".encode())
        found += [f"INSERT INTO {table} ({columns}) VALUES ({', '.join(row)});" for row in rows.fetchall()]
    return found


if __name__ == "__main__":
    template = ClusterTemplate()
    try:
        with template.server() as server:
            make(Path(sys.argv[1]), server.url())
    finally:
        template.remove()
