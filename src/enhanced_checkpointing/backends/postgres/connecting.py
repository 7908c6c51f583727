"""One connection to PostgreSQL: how it is made so that a dead network shows, and how it is cut."""

from __future__ import annotations

import math
import os
import socket
from typing import Any

from psycopg import AsyncConnection, conninfo
from psycopg.rows import DictRow
from pydantic import SecretStr

from enhanced_checkpointing.backends.postgres.hosts import with_addresses

Connection = AsyncConnection[DictRow]


class HostsApartConnection(AsyncConnection[DictRow]):
    """A connection whose host is looked up in a thread of its own, and whose errors do not carry the password."""

    @classmethod
    async def connect(cls, *arguments: Any, **parameters: Any) -> Any:
        try:
            return await super().connect(*arguments, **parameters)
        except BaseException as error:  # noqa: BLE001  # raised below
            failed = error
        # Error trackers keep the local variables of all frames: those of psycopg's have the password, and so had ours.
        arguments, parameters = (), {}
        failed.__cause__ = failed.__context__ = None
        raise failed.with_traceback(None)

    @classmethod
    async def _get_connection_params(cls, conninfo: str, **kwargs: Any) -> Any:
        return await with_addresses(await super()._get_connection_params(conninfo, **kwargs))


def connection_parameters(connection_string: SecretStr, deadline: float) -> dict[str, Any]:
    """Connection parameters that make a dead network show, where the URL does not set them itself.

    `deadline` is that of a call, in seconds.
    """
    wanted: dict[str, Any] = {
        "application_name": "enhanced-checkpointing",
        "connect_timeout": max(2, math.ceil(deadline)),
        "keepalives": 1,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(2 * deadline * 1000),
    }
    given = conninfo.conninfo_to_dict(connection_string.get_secret_value())
    return {name: value for name, value in wanted.items() if name not in given}


def cut(connection: Connection) -> None:
    """End a connection without a word to the server, so that whoever waits on it wakes at once.

    The socket is shut down, not closed: closing it would free the number of a file that the event loop still watches.
    """
    if connection.closed:
        return
    duplicate = socket.socket(fileno=os.dup(connection.fileno()))
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was faster: it is cut already
    finally:
        duplicate.close()
