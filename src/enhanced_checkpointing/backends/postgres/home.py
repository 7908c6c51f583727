"""Which database a connection string means, without whose it is."""

from __future__ import annotations

import re
from hashlib import blake2b

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

DEFAULT_PORT = "5432"


def home_of(connection_string: str, schema: str | None) -> str:
    """`postgres://host:port/dbname?schema=…`, with several hosts in their order by name.

    What the string leaves out is what libpq takes for it: from the environment, else its default. A database that is
    named after its user is told by a hash of that name.
    """
    given = {key: str(value) for key, value in conninfo_to_dict(connection_string).items() if value}
    defaults = {option.keyword.decode(): (option.val or b"").decode() for option in pq.Conninfo.get_defaults()}

    def value(key: str) -> str:
        return given.get(key) or defaults.get(key, "")

    hosts = (given.get("host") or given.get("hostaddr") or value("host") or "local").split(",")
    ports = (value("port") or DEFAULT_PORT).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    places = ",".join(sorted(f"{_same(host)}:{port or DEFAULT_PORT}" for host, port in zip(hosts, ports, strict=False)))
    user = blake2b(value("user").encode(), digest_size=4).hexdigest()
    schema = schema or _first_of_search_path(value("options"))
    service = given.get("service")
    marks = [f"schema={schema}"] * bool(schema) + [f"service={service}"] * bool(service)
    return f"postgres://{places}/{value('dbname') or f'~{user}'}{'?' * bool(marks)}{'&'.join(marks)}"


def _same(host: str) -> str:
    """Names of hosts count in any case, paths of sockets do not."""
    return host if host.startswith(("/", "@")) else host.lower()


def _first_of_search_path(options: str) -> str | None:
    found = re.search(r"search_path\s*=\s*([^\s,]+)", options)
    return found[1] if found else None
