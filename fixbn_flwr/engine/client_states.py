"""The states of all clients, on disk, so that memory does not grow with the number of clients."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """A client's ``context.state`` in the parts of :func:`fixbn_flwr.engine.records.split`.

    Attributes:
        header: The header.
        large: The large byte strings.
    """

    header: bytes
    large: Sequence[memoryview | bytes]


@dataclass
class _Slot:
    offset: int
    room: int
    lengths: list[int]


class ClientStates:
    """Keeps one state per client in a temporary file without a name.

    A state that is not longer than the client's previous one overwrites it.

    Examples:
        >>> states = ClientStates()
        >>> states.put(7, State(b"header", [b"momentum"]))
        >>> states.get(7)
        State(header=b'header', large=[b'momentum'])
        >>> states.get(8) is None
        True
        >>> states.close()
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="fixbn-flwr-")  # noqa: SIM115
        self._slots: dict[int, _Slot] = {}
        self._end = 0

    def put(self, client: int, state: State) -> None:
        """Keep a client's state in place of its previous one.

        Raises:
            OSError: If the disk of the temporary directory is full.
        """
        parts = [state.header, *state.large]
        length = sum(map(len, parts))
        slot = self._slots.get(client)
        if slot is None or length > slot.room:
            # A growing state gets room to grow: the file stays below four times its content.
            slot = _Slot(self._end, length if slot is None else 2 * length, [])
            self._end += slot.room
        self._file.seek(slot.offset)
        for part in parts:
            self._file.write(part)
        slot.lengths = list(map(len, parts))
        self._slots[client] = slot

    def get(self, client: int) -> State | None:
        """Return a client's state; None if it has none yet."""
        slot = self._slots.get(client)
        if slot is None:
            return None
        self._file.seek(slot.offset)
        header, *large = [self._file.read(length) for length in slot.lengths]
        return State(header, large)

    def clients(self) -> list[int]:
        """Return the clients that have a state."""
        return list(self._slots)

    def close(self) -> None:
        """Free the disk."""
        with suppress(OSError):  # the disk is full: what was not written is not needed
            self._file.close()
