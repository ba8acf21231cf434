"""Write the messages of a round to shared memory, each array once."""

from __future__ import annotations

from collections.abc import Sequence

from fixbn_flwr.engine.shared_memory import Place, SharedMemory
from fixbn_flwr.engine.worker import Packed


class MessageBoard:
    """Writes messages to memory that all workers read.

    A strategy sends most clients the same arrays. A byte string that several messages share, as the
    same object, is written once. The memory is used again when all messages have their replies.

    Examples:
        >>> board, array = MessageBoard(), bytes(8000)
        >>> one, other = (board.write(b"header", [memoryview(array)]) for _ in range(2))
        >>> one.places == other.places
        True

    Attributes:
        memory: The memory, for the workers.
    """

    def __init__(self) -> None:
        self.memory = SharedMemory()
        self._places: dict[int, tuple[object, Place]] = {}  # by the identity of the byte string
        self._end = 0
        self._unanswered = 0

    def write(self, header: bytes, large: Sequence[memoryview]) -> Packed:
        """Write a message's large byte strings, unless they are there already."""
        self._unanswered += 1
        places = []
        for part in large:
            whole = part.obj  # kept with its place, so that its identity is not used again
            if id(whole) not in self._places:
                (place,) = self.memory.write([part], self._end)
                self._end = sum(place)
                self._places[id(whole)] = (whole, place)
            places.append(self._places[id(whole)][1])
        return Packed(header, places)

    def release(self) -> None:
        """Count a reply; with the last one, forget all messages."""
        self._unanswered -= 1
        if not self._unanswered:
            self._places.clear()
            self._end = 0

    def close(self) -> None:
        """Free the memory."""
        self.memory.close()
