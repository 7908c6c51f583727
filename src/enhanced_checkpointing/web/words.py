"""Times, sizes and numbers as a person reads them."""

from __future__ import annotations

from datetime import UTC, datetime

_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def span(seconds: float) -> str:
    """A time that something took, in its two largest units."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3_600:
        return _in_two(whole, (60, "min"), (1, "s"))
    if whole < 86_400:
        return _in_two(whole, (3_600, "h"), (60, "min"))
    return _in_two(whole, (86_400, "d"), (3_600, "h"))


def _in_two(whole: int, large: tuple[int, str], small: tuple[int, str]) -> str:
    rest = whole % large[0] // small[0]
    return f"{whole // large[0]} {large[1]}" + (f" {rest} {small[1]}" if rest else "")


def several(count: int, one: str, many: str) -> str:
    """A number of things."""
    return f"{count:,} {one if count == 1 else many}"


def size(count: float) -> str:
    """Bytes."""
    for unit in _SIZES[:-1]:
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} {_SIZES[-1]}"


def clock(at: float) -> str:
    """The time of day."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def moment(at: float, now: float) -> str:
    """The time of day; with the date, if that is not the one of `now`."""
    then, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC)
    return then.strftime("%H:%M:%S" if then.date() == today.date() else "%d %b %H:%M:%S")


def exact(at: float) -> str:
    """The time for machines."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
