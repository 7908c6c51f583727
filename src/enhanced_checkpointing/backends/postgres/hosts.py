"""Names of hosts, looked up without the event loop's default executor, in which psycopg does it."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import psycopg

from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own

Parameters = dict[str, Any]


async def with_addresses(parameters: Parameters) -> Parameters:
    """Connection parameters with the addresses of all hosts, each host as often as it has addresses.

    The names stay: certificates and password files are looked up by them.

    Raises:
        psycopg.OperationalError: no host has an address.
    """
    hosts = str(parameters.get("host") or "").split(",")
    if parameters.get("hostaddr") or not any(map(_is_name, hosts)):
        return parameters
    ports = str(parameters.get("port") or "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    found: list[tuple[str, str, str]] = []
    errors: list[str] = []
    for host, port in zip(hosts, ports, strict=False):
        try:
            addresses = await _addresses(host, port) if _is_name(host) else [host]
        except OSError as error:
            errors.append(f"{host!r}: {error.strerror or error}")
            continue
        found += [(host, address, port) for address in addresses]
    if not found:
        raise psycopg.OperationalError(f"failed to resolve host {'; '.join(errors)}")
    names, numbers, of_ports = (",".join(column) for column in zip(*found, strict=True))
    return {**parameters, "host": names, "hostaddr": numbers, "port": of_ports}


async def _addresses(host: str, port: str) -> list[str]:
    infos = await in_thread_of_its_own(
        lambda: socket.getaddrinfo(host, port or "5432", proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM),
        name=f"look up {host}",
    )
    return [str(info[4][0]) for info in infos]


def _is_name(host: str) -> bool:
    """Whether a host is neither an address nor the directory of a socket."""
    if not host or host.startswith(("/", "@")):
        return False
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False
