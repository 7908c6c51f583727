"""The options that many commands have, said once, and how a function becomes a command that has them."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer
from typer.models import OptionInfo

from enhanced_checkpointing.errors import redact

if TYPE_CHECKING:
    from enhanced_checkpointing.cli.output import ExitCode

DATABASE = ("database_url", "sqlite", "environment", "env_file")
DATABASE_AND_JOURNAL = ("database_url", "sqlite", "journal_dir", "environment", "env_file")
JOURNAL = ("journal_dir", "env_file")
PROFILE = ("environment", "env_file")

ID = "id"
"""Marks an argument or option that names threads, a namespace or a user: it must be an id that a saver would take."""

URL = "url"
"""Marks an argument or option that may be a URL with a password: the command gets what `url` makes of it."""

ELSEWHERE = "env:NAME takes it from a variable, @PATH from a file, so that a password is not in the command line"

_SHARED: dict[str, Any] = {
    "database_url": Annotated[
        str | None,
        typer.Option(
            help=f"PostgreSQL as the primary, instead of the configured one; {ELSEWHERE}.",
            show_default=False,
        ),
    ],
    "sqlite": Annotated[
        Path | None,
        typer.Option(help="This SQLite file as the primary, instead of the configured one.", show_default=False),
    ],
    "journal_dir": Annotated[
        Path | None, typer.Option(help="Directory of the journal, instead of the configured one.", show_default=False)
    ],
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
    "warning: the password in {} can be read by every user of this machine while the command runs. Put the URL into a "
    "variable or a file, and give env:NAME or @PATH instead."
)
MOST_BYTES = 64 * 1024
"""Of a file with a URL."""

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
        from enhanced_checkpointing.cli.output import guarded
        from enhanced_checkpointing.identifiers import text_of

        as_json = given.pop("json")
        options = Options(**{one: given.pop(one) for one in takes})

        def work() -> ExitCode:
            database_url = url("--database-url", options.database_url, options.env_file)
            for name, value in given.items():
                if name in urls:
                    given[name] = url(urls[name], value, options.env_file)
                for one in value if isinstance(value, (list, tuple)) else [value]:
                    if name in ids and one is not None:
                        text_of(one, f"The given {name}")
            return body(replace(options, database_url=database_url), as_json, **given)

        raise typer.Exit(guarded(work, as_json=as_json))

    # Of a body's own options only: what comes before them is not imported until the command runs.
    hints = get_type_hints(body, localns={"Options": Any, "ExitCode": Any}, include_extras=True)
    own = [one.replace(annotation=hints[one.name]) for one in [*inspect.signature(body).parameters.values()][2:]]
    marks: dict[str, tuple[Any, ...]] = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    ids = {name for name, marked in marks.items() if ID in marked}
    urls = {
        name: f"--{name}" if isinstance(marked[0], OptionInfo) else name.upper()
        for name, marked in marks.items()
        if URL in marked
    }
    shared = [_option(one, _SHARED[one], None) for one in takes]
    parameters = [*own, *shared, _option("json", _JSON, False)]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__name__, run.__doc__ = body.__name__, body.__doc__
    return run


def url(name: str, given: str | None, env_file: Path | None = None) -> str | None:
    """What was given as a URL, or what the variable or the file holds that was named instead of it.

    Says so on stderr where a password stands in the command line. No message repeats what was given.

    Raises:
        UsageError: there is no such variable, or the file holds no URL.
    """
    from enhanced_checkpointing.cli.configuration import variables_of
    from enhanced_checkpointing.cli.output import UsageError

    if given is None:
        return None
    if variable := re.fullmatch(r"env:([A-Za-z_]\w*)", given):
        found = os.environ.get(variable[1]) or variables_of(env_file).get(variable[1], "")
        where = f"{name} names the variable {variable[1]}, which"
    elif given.startswith("@"):
        where = f"{name} names a file with '@', which"
        try:
            with Path(given[1:]).open(encoding="utf-8") as file:
                found = file.read(MOST_BYTES)
        except (OSError, ValueError) as error:
            raise UsageError(f"{where} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}.") from None
    else:
        if redact(given) != given:
            print(PASSWORD_IS_SEEN.format(name), file=sys.stderr)
        return given
    if not found.strip() or "\n" in found.strip():
        raise UsageError(f"{where} {'holds more than one line' if found.strip() else 'is not set, or empty'}.")
    return found.strip()


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
