"""All checks: `nox` runs what needs nothing but Python; `nox -l` lists the sessions."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nox
from nox.command import CommandFailed

# Hundreds of processes are started, each of which would compile all packages anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True

PYTHONS = ["3.11", "3.12", "3.13"]
nox.options.sessions = ["lint", "together", "serving", "lowest", f"unit-{PYTHONS[-1]}"]
"""What runs with every push. What is between the oldest and the newest of anything has its turn at night."""
SERVERS = ["18", "16"]
PARALLEL = ("-n", "2", "--dist", "worksteal")
"""As many at a time as the smallest machine has cores: tests of deadlines must not starve each other."""
INTEGRATION = ("tests/conformance", "tests/faults/test_same_rows.py")
OF_EACH_DEPENDENCY = (
    *(
        f"tests/unit/test_{name}.py"
        for name in ("borrowed_names", "cli", "opentelemetry_sink", "prometheus", "settings")
    ),
    *INTEGRATION,
    *(f"tests/faults/test_{name}_in_an_outage.py" for name in ("reads", "subgraphs")),
)
"""What tells whether a version of a dependency works; what an outage shows depends on how LangGraph calls a saver."""


def install(session: nox.Session, *groups: str) -> None:
    """Install what a session needs, unless it is the one that has everything already."""
    if session.name != "together":
        install_all(session, *groups)


LOCKS = {
    "lint": ("lint",),
    "test": ("test",),
    "serving": ("test", "langgraph-server"),
    "all": ("types", "lint", "coverage"),  # `types` has all groups of tests in it
}
"""What is locked together, the smallest first: sessions take the first lock that has all they need."""
LOCKED = Path(".ci/locks")


def install_all(session: nox.Session, *groups: str) -> None:
    """Install what is locked for these groups of development tools, each file checked by its hash; then the project.

    The project itself is built with what is locked, too.
    """
    held = {"all": {*LOCKS["all"], *LOCKS["test"], "containers", "deploy", "docs", "bench", "release"}}
    lock = next(name for name, of in LOCKS.items() if {*groups} <= held.get(name, {*of}))
    session.install("--require-hashes", "-r", str(LOCKED / f"{lock}.txt"))
    if lock != "lint":
        session.install("--no-deps", "--no-build-isolation", ".[otlp,demo,serving]")


def pytest(session: nox.Session, *arguments: str, marks: str = "not nightly") -> None:
    """Run these tests, without the long proofs of `nox -s nightly`."""
    session.run("python", "-m", "pytest", *arguments, "-m", marks, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: errors and formatting."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def imports(session: nox.Session) -> None:
    """Imports only go down."""
    install(session, "lint", "test")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy in strict mode over everything, tests included."""
    install(session, "types")
    session.run("mypy")


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """Pure tests, on every supported Python that is present."""
    install(session, "test")
    pytest(session, "tests/unit", *PARALLEL, marks="" if session.python == PYTHONS[0] else "not thorough")


@nox.session
def simulation(session: nox.Session) -> None:
    """Seeded histories on virtual time; with the unit tests, every branch that must not fail is taken."""
    install(session, "test", "coverage")
    pytest(session, "tests/unit", "tests/simulation", "--cov", "--cov-report=term-missing", *PARALLEL)


@nox.session
@nox.parametrize("postgres", SERVERS)
def faults(session: nox.Session, postgres: str) -> None:
    """Real faults against a real PostgreSQL, whose binaries come in a wheel; LangGraph's suite before, in and after."""
    install(session, "test")
    session.env["TEST_POSTGRES_VERSION"] = postgres
    pytest(session, "tests/conformance", "tests/faults", *PARALLEL, marks="not alone and not nightly")
    pytest(session, "tests/faults", marks="alone and not nightly")


@nox.session
def chaos(session: nox.Session) -> None:
    """Graphs of every kind while everything around them breaks: `nox -s chaos -- --minutes 30 --seed 7`."""
    install(session, "test")
    if session.posargs:
        session.run("python", "-m", "tests.chaos", *session.posargs)
    else:
        pytest(session, "tests/chaos")


@nox.session
def examples(session: nox.Session) -> None:
    """The examples and the README's code, run."""
    install(session, "test")
    pytest(session, "tests/examples", *PARALLEL)


@nox.session
def serving(session: nox.Session) -> None:
    """What is served, against a real PostgreSQL: in a real Chromium, and in LangGraph's own server."""
    install(session, "test", "langgraph-server")
    pytest(session, "tests/serving", *PARALLEL)


@nox.session
def deploy(session: nox.Session) -> None:
    """The files of deploy/: their schemas, and the alerts in a real outage. Needs Debian's package `prometheus`."""
    install(session, "test", "deploy")
    pytest(session, "tests/deploy", "-n", "2", "--dist", "loadfile", marks="not alone")  # one outage serves a file
    pytest(session, "tests/deploy", marks="alone")


@nox.session
def docs(session: nox.Session) -> None:
    """The documents: their commands run, their links lead somewhere. `nox -s docs -- serve` shows them."""
    install(session, "test", "docs")
    session.env["NO_MKDOCS_2_WARNING"] = "1"
    if session.posargs:
        session.run("mkdocs", *session.posargs)
    else:
        session.run("mkdocs", "build", "--strict", "--quiet")  # into build/site
        pytest(session, "tests/docs", *PARALLEL)


@nox.session
def together(session: nox.Session) -> None:
    """All that one Python can tell, in one environment: as many would take minutes to be made and to get warm."""
    install_all(session, "lint", "types", "coverage")  # `types` has all groups of tests in it
    parts: dict[str, Callable[[nox.Session], object]] = {
        "imports": imports,
        "types": types,
        "simulation": simulation,
        "chaos": chaos,
        "examples": examples,
        "deploy": deploy,
        "docs": docs,
        "faults": partial(faults, postgres=SERVERS[0]),
    }
    missed = []
    for name, part in parts.items():
        session.log(f"together: {name}")
        try:
            part(session)
        except CommandFailed:  # the others are worth a look, too
            missed.append(name)
    if missed:
        session.error(f"failed: {', '.join(missed)}")


@nox.session
def bench(session: nox.Session) -> None:
    """Pairs with the bare savers, written to docs/benchmarks.md with their curves: takes minutes on an idle machine."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *(session.posargs or ["--write"]))


@nox.session
def lowest(session: nox.Session) -> None:
    """The lowest versions of all direct dependencies: the oldest LangGraph that works."""
    project = nox.project.load_toml("pyproject.toml")
    session.install("uv")
    wanted = [".[otlp,demo,serving]", *nox.project.dependency_groups(project, "test")]
    session.run("uv", "pip", "install", "--resolution", "lowest-direct", *wanted, silent=True)
    pytest(session, *OF_EACH_DEPENDENCY, *PARALLEL)


@nox.session
def newest(session: nox.Session) -> None:
    """The newest versions of all direct dependencies that the bounds allow, upgraded whatever is there already."""
    project = nox.project.load_toml("pyproject.toml")
    session.install("--upgrade", ".[otlp,demo,serving]", *nox.project.dependency_groups(project, "test"))
    pytest(session, *OF_EACH_DEPENDENCY, *PARALLEL)


@nox.session
def lock(session: nox.Session) -> None:
    """Lock what the checks run with, in the newest versions that fit, with hashes: `nox -s lock`, and look at it."""
    session.install("uv")
    LOCKED.mkdir(exist_ok=True)
    for name, groups in LOCKS.items():
        of_project = [] if name == "lint" else ["pyproject.toml", "--all-extras"]
        chosen = [word for group in groups for word in ("--group", group)]
        session.run(
            *("uv", "pip", "compile", *of_project, *chosen, "--output-file", str(LOCKED / f"{name}.txt")),
            *("--universal", "--python-version", PYTHONS[0], "--generate-hashes", "--upgrade", "--quiet"),
            *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
        )


@nox.session
def release(session: nox.Session) -> None:
    """Build wheel and source distribution into dist/, with a bill of materials of what a user gets with them."""
    install_all(session, "release")
    session.run("python", "-m", "build", "--no-isolation", "--outdir", "dist")
    runtime = Path(session.create_tmp()) / "runtime"
    session.run("python", "-m", "venv", "--clear", str(runtime))
    (wheel,) = Path("dist").glob("*.whl")
    session.run(str(runtime / "bin" / "pip"), "install", "--quiet", f"{wheel}[otlp,cli,serving]", external=True)
    session.run(
        *("cyclonedx-py", "environment", str(runtime / "bin" / "python"), "--pyproject", "pyproject.toml"),
        *("--output-reproducible", "--output-format", "JSON", "--output-file", "dist/bill-of-materials.cdx.json"),
    )


@nox.session
def nightly(session: nox.Session) -> None:
    """What takes too long for every push: fuzz, 10,000 simulated worlds, chaos, other versions; then one table."""
    install(session, "test", "deploy")
    session.env["NOX_PYTHON"] = sys.executable
    session.run("python", "-m", "tests.nightly", *session.posargs)  # --seeds 100 --minutes 1 --fuzz 2: a short one


@nox.session
def containers(session: nox.Session) -> None:
    """The integration tests on a PostgreSQL that testcontainers starts; needs a container engine."""
    install(session, "test", "containers")
    session.env.update(_engine())
    session.env["TEST_POSTGRES"] = "containers"
    pytest(session, "tests/containers", "tests/faults/test_same_rows.py", *PARALLEL)


def _engine() -> dict[str, str]:
    """The variables of a container engine; one is brought up by `../shared/tools/docker-up` where that exists."""
    running = subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0
    starter = Path("../shared/tools/docker-up")
    if running or not starter.exists():
        return {}
    exports = subprocess.run([str(starter)], stdout=subprocess.PIPE, text=True, check=True, env=os.environ).stdout
    words = [word for line in exports.splitlines() for word in shlex.split(line.removeprefix("export "))]
    return dict(word.split("=", 1) for word in words)
