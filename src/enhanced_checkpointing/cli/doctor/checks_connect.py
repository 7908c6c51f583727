"""Why no connection to PostgreSQL comes about: the host, the port, the handshake, the login."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psycopg.conninfo import conninfo_to_dict

from enhanced_checkpointing.cli.findings import Finding, failed, fine, skipped
from enhanced_checkpointing.cli.primary import bounded
from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own
from enhanced_checkpointing.resilience.failures import CallFailed

__all__ = ["Place", "Reached", "check_host", "explain_login", "places_of", "reach"]

DEFAULT_PORT = "5432"

REFUSED_START = "An application that starts now is refused its start, with this error."
DEGRADED_START = (
    "An application that starts now runs degraded: writes go to the journal, threads that it does not hold cannot be "
    "read (with CHECKPOINT_REQUIRE_PRIMARY=true it does not start)."
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server should listen."""

    host: str
    port: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Reached:
    """How the attempt ended to connect to a place: without an `error` somebody listens there."""

    place: Place
    error: str = ""
    explanation: str = ""


def places_of(connection_string: str) -> list[Place]:
    """Where TCP connections of this connection string go; those to sockets in the file system are left out."""
    parts = {key: str(value) for key, value in conninfo_to_dict(connection_string).items() if value}
    hosts = (parts.get("hostaddr") or parts.get("host") or "").split(",")
    ports = (parts.get("port") or DEFAULT_PORT).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    pairs = zip(hosts, ports, strict=False)
    return [Place(host, port or DEFAULT_PORT) for host, port in pairs if host and not host.startswith(("/", "@"))]


async def reach(place: Place, seconds: float) -> Reached:
    """Connect to a place by TCP, and hang up."""

    def connect() -> None:
        socket.create_connection((place.host, int(place.port)), timeout=seconds).close()

    try:
        await bounded(in_thread_of_its_own(connect, f"connect to {place}"), 2 * seconds)
    except socket.gaierror as error:
        return Reached(place, f"the name {place.host!r} has no address ({error.strerror})", "name")
    except ConnectionRefusedError:
        return Reached(place, "the connection was refused: nobody listens there", "refused")
    except (TimeoutError, OSError) as error:
        reason = getattr(error, "strerror", None) or f"no answer within {seconds:g} s"
        return Reached(place, str(reason), "silent")
    return Reached(place)


FIX_HOST = {
    "name": "Correct the host in DATABASE_URL; inside a container or cluster, it is the name of the database's "
    "service, not localhost.",
    "refused": "Start the server, or correct host and port in DATABASE_URL. In a container, localhost is the "
    "container itself. A server that listens on its own machine only needs listen_addresses='*'.",
    "silent": "A firewall, security group or network policy drops the packets, or the address is wrong: allow the port "
    "from this machine, or correct host and port in DATABASE_URL.",
}


def check_host(reached: Sequence[Reached]) -> Finding:
    """Whether somebody listens where DATABASE_URL leads."""
    name = "database.host"
    if not reached:
        return skipped(name, "DATABASE_URL leads to a socket in the file system, not over the network.")
    bad = [each for each in reached if each.error]
    if not bad:
        places = ", ".join(str(each.place) for each in reached)
        return fine(name, f"Somebody listens at {places}.", places=places)
    what = "; ".join(f"{each.place}: {each.error}" for each in bad)
    finding = failed(name, f"The server cannot be reached: {what}.", DEGRADED_START, FIX_HOST[bad[0].explanation])
    if len(bad) < len(reached):
        good = ", ".join(str(each.place) for each in reached if not each.error)
        return fine(name, f"Somebody listens at {good}; of the others: {what}.", places=good)
    return finding


class _Refusal(NamedTuple):
    """What a server says when it gives no session; `signs` are parts of its words."""

    signs: tuple[str, ...]
    what: str
    means: str
    fix: str


_LOGINS = (
    _Refusal(
        ("password authentication failed", "no password supplied", "authentication failed"),
        "The server does not accept this user and password.",
        REFUSED_START,
        "Correct user and password in DATABASE_URL. Special characters of the password are written as %XX there "
        "('@' is %40, '/' is %2F, '%' is %25).",
    ),
    _Refusal(
        ("does not support SSL", "certificate", "sslmode", "sslrootcert"),
        "The encryption that DATABASE_URL asks for does not come about.",
        REFUSED_START,
        "Correct sslmode and sslrootcert in DATABASE_URL, or set the server up for TLS (ssl=on).",
    ),
    _Refusal(
        ("too many connections for",),
        "The server gives this user, or this database, no further connection.",
        DEGRADED_START,
        "Allow more: ALTER ROLE name CONNECTION LIMIT -1, or ALTER DATABASE name CONNECTION LIMIT -1; or end some.",
    ),
    _Refusal(
        ("is not permitted to log in",),
        "The server does not let this user log in.",
        REFUSED_START,
        "Allow it: ALTER ROLE name LOGIN; or correct the user in DATABASE_URL.",
    ),
    _Refusal(
        ('role "',),
        "The server has no such user.",
        REFUSED_START,
        "Create the role: CREATE ROLE name LOGIN PASSWORD '…'; or correct the user in DATABASE_URL.",
    ),
    _Refusal(
        ("permission denied for database",),
        "This user may not connect to the database.",
        REFUSED_START,
        "As the owner of the database: GRANT CONNECT ON DATABASE name TO user.",
    ),
    _Refusal(
        ("does not exist", "no such database"),
        "The server has no such database.",
        REFUSED_START,
        "Create it: CREATE DATABASE name; or correct its name at the end of DATABASE_URL.",
    ),
    _Refusal(
        ("no pg_hba.conf entry", "no encryption"),
        "The server does not admit this user from this machine, with or without encryption.",
        REFUSED_START,
        "Add a line to pg_hba.conf on the server and reload it; or ask for encryption with ?sslmode=require.",
    ),
    _Refusal(
        ("too many clients", "too many connections", "remaining connection slots"),
        "The server has no connection left.",
        DEGRADED_START,
        "Raise max_connections, put a pooler in between, or lower CHECKPOINT_POOL_MAX_SIZE; who holds "
        "them: SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2.",
    ),
    _Refusal(
        ("starting up", "shutting down", "in recovery mode", "not yet accepting connections"),
        "The server is starting, stopping or recovering from a crash.",
        DEGRADED_START,
        "Wait until it is up; its log says how far it is.",
    ),
)


def explain_login(error: CallFailed, seconds: float) -> Finding:
    """Why the server, which listens, gave no session."""
    name, text = "database.login", redact(error.error).strip()
    if error.timed_out or isinstance(error.error, TimeoutError) or "timeout" in text:
        return failed(
            name,
            f"The server takes the connection and does not answer within {seconds:g} s.",
            DEGRADED_START,
            "It hangs, is overloaded, or is no PostgreSQL: look at its machine and log (disk full? frozen? swapping?), "
            "and at what is in between.",
        )
    for signs, what, means, fix in _LOGINS:
        if any(sign in text for sign in signs):
            return failed(name, what, means, fix, error=text)
    fix = error.failure.fix or "Look into the server's log: it says more than it tells a client."
    return failed(name, f"The server gave no session: {_one_line(text)}", DEGRADED_START, fix, error=text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


async def reach_all(places: Sequence[Place], seconds: float) -> list[Reached]:
    """Reach all places at the same time."""
    return list(await asyncio.gather(*(reach(place, seconds) for place in places)))
