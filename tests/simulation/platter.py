"""A disk in the simulated world: what is cached and what would survive a crash are kept apart."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulation.world import World

SECTOR = 512


@dataclass(slots=True, eq=False)
class Content:
    """One file. `unsynced` are the changes since its last sync: (offset, data) of a write, (size, None) of a cut."""

    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, at: int, data: bytes | None) -> None:
        _change(self.cached, at, data)
        self.unsynced.append((at, data))

    def arrive(self) -> None:
        """All of it reaches the disk."""
        for at, data in self.unsynced:
            _change(self.durable, at, data)
        self.unsynced.clear()


@dataclass(frozen=True, slots=True)
class NameChange:
    """A name that got a file, or lost the one that it had."""

    added: tuple[str, Content] | None
    removed: str | None


class Platter:
    """The directory of the journal. It outlives our process, and what is synced outlives the machine's power."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.names: dict[str, Content] = {}
        self.shared: dict[str, Content] = {}
        """Files that processes map. They are never synced."""
        self.locked: set[Content] = set()
        self.full = False
        self.slow = False
        self.failing: frozenset[str] = frozenset()
        """What fails from now on, by the name of the call."""
        self.fails_next: str | None = None
        """What fails once."""
        self.copies: set[str] = set()
        self._durable_names: dict[str, Content] = {}
        self._changes: list[NameChange] = []

    def rename(self, change: NameChange) -> None:
        _rename(self.names, change)
        self._changes.append(change)

    def sync_names(self) -> None:
        for change in self._changes:
            _rename(self._durable_names, change)
        self._changes.clear()

    def lose_process(self, *, power: bool) -> None:
        """The process died; with it the machine, if the `power` failed."""
        self.locked.clear()
        if not power:
            return
        random = self._world.random
        for content in self.shared.values():
            torn = random.randbytes(8) * (len(content.cached) // 8)  # whatever was on the disk before
            content.cached[:] = random.choice([bytes(content.cached), bytes(len(content.cached)), torn])
        kept = [change for change in self._changes if random.random() < 0.5]
        for change in random.choice([kept, self._changes[: len(kept)]]):
            _rename(self._durable_names, change)
        self._changes.clear()
        self.names = dict(self._durable_names)
        for content in self.names.values():
            self.tear(content)
            content.cached = bytearray(content.durable)

    def tear(self, content: Content) -> None:
        """Of what is not synced let some of the changes arrive, and of the others some sectors."""
        random = self._world.random
        whole = random.choice([0, len(content.unsynced), random.randint(0, len(content.unsynced))])
        changes, content.unsynced = content.unsynced, []
        for at, data in changes[:whole]:
            _change(content.durable, at, data)
        rest = changes[whole:]
        share = random.choice([0.0, 0.5, 0.9])
        size = len(content.durable)
        sectors = {at // SECTOR + n for at, data in rest for n in range(-(-len(data or b"") // SECTOR) + 1)}
        for sector in sorted(sectors):
            start, end = sector * SECTOR, (sector + 1) * SECTOR
            if (
                start < len(content.cached) and random.random() < share
            ):  # a sector arrives as a whole, zeros behind the end
                length = max(len(content.cached), min(len(content.durable), end)) - start
                _change(content.durable, start, bytes(content.cached[start:end]).ljust(min(length, SECTOR), b"\0"))
        if rest and len(content.durable) > size and random.random() < 0.5:
            _change(content.durable, len(content.cached), None)  # the size arrived, not all of what is in it


def _change(data: bytearray, at: int, new: bytes | None) -> None:
    """Write at an offset, or for None make it that long."""
    if len(data) < at:
        data.extend(bytes(at - len(data)))
    if new is None:
        del data[at:]
    else:
        data[at : at + len(new)] = new


def _rename(names: dict[str, Content], change: NameChange) -> None:
    if change.removed is not None:
        names.pop(change.removed, None)
    if change.added is not None:
        name, content = change.added
        names[name] = content
