"""The options that many commands have, said once, and how a function becomes a command that has them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from enhanced_checkpointing.errors import redact

if TYPE_CHECKING:
    from enhanced_checkpointing.cli.findings import ExitCode

__all__ = ["DATABASE", "DATABASE_AND_JOURNAL", "ID", "JOURNAL", "PROFILE", "Serde", "command"]

DATABASE = ("database_url", "sqlite", "environment", "env_file")
DATABASE_AND_JOURNAL = ("database_url", "sqlite", "journal_dir", "environment", "env_file")
JOURNAL = ("journal_dir", "env_file")
PROFILE = ("environment", "env_file")

ID = "id"
"""Marks an argument or option that names threads, a namespace or a user: it must be an id that a saver would take."""

Serde = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:NAME",
        help="The serializer that the application gives to CheckpointerConfig(serde=…). Needed for encrypted values.",
        show_default=False,
    ),
]

_SHARED: dict[str, Any] = {
    "database_url": Annotated[
        str | None,
        typer.Option(
            help="PostgreSQL as the primary, instead of what the environment says. Others on this machine can read a "
            "command line: a password belongs in DATABASE_URL, or in the file of --env-file.",
            show_default=False,
        ),
    ],
    "sqlite": Annotated[
        Path | None, typer.Option(help="This SQLite file as the primary, instead.", show_default=False)
    ],
    "journal_dir": Annotated[Path | None, typer.Option(help="Directory of the journal, instead.", show_default=False)],
    "environment": Annotated[
        str | None, typer.Option(help="Profile: development, testing or production.", show_default=False)
    ],
    "env_file": Annotated[
        Path | None,
        typer.Option(help="Take variables that the environment does not set from this file.", show_default=False),
    ],
}
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]

PASSWORD_IS_SEEN = (
    "warning: the password in --database-url can be read by every user of this machine while the command runs. Set "
    "DATABASE_URL, or name a file with --env-file, instead."
)

Body = TypeVar("Body", bound=Callable[..., "ExitCode"])


def command(app: typer.Typer, name: str | None = None, *, takes: Sequence[str]) -> Callable[[Body], Body]:
    """Make a command of a function. It is given the `Options` of those that the command `takes`, then whether JSON is
    wanted, and then what the command has besides.
    """

    def made(body: Body) -> Body:
        app.command(name)(_with_options(body, takes))
        return body

    return made


def _with_options(body: Callable[..., ExitCode], takes: Sequence[str]) -> Callable[..., None]:
    def run(**given: Any) -> None:
        from enhanced_checkpointing.cli.configuration import Options
        from enhanced_checkpointing.cli.screen import guarded
        from enhanced_checkpointing.identifiers import text_of

        as_json = given.pop("json")
        options = Options(**{one: given.pop(one) for one in takes})
        if options.database_url is not None and _holds_password(options.database_url):
            print(PASSWORD_IS_SEEN, file=sys.stderr)

        def work() -> ExitCode:
            for name, value in given.items():
                for one in value if isinstance(value, (list, tuple)) else [value]:
                    if name in ids and one is not None:
                        text_of(one, f"The given {name}")
            return body(options, as_json, **given)

        raise typer.Exit(guarded(work, as_json=as_json))

    # Of a body's own options only: what comes before them is not imported until the command runs.
    hints = get_type_hints(body, localns={"Options": Any, "ExitCode": Any}, include_extras=True)
    own = [one.replace(annotation=hints[one.name]) for one in [*inspect.signature(body).parameters.values()][2:]]
    ids = {name for name, hint in hints.items() if ID in getattr(hint, "__metadata__", ())}
    shared = [_option(one, _SHARED[one], None) for one in takes]
    parameters = [*own, *shared, _option("json", _JSON, False)]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__name__, run.__doc__ = body.__name__, body.__doc__
    return run


def _holds_password(connection_string: str) -> bool:
    return redact(connection_string) != connection_string


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
