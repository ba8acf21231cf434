"""Write checkpoints in a thread, so that the next round does not wait for the disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from fixbn_flwr.persistence.checkpoints import Checkpoints
from fixbn_flwr.persistence.safetensors_tree import Tree, to_bytes


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time.

    An error of the disk is raised by the next call of ``save`` or ``wait``.

    Args:
        checkpoints: Where they are written.

    Attributes:
        rounds: The rounds that the run can be resumed from, now and when the checkpoint that is
            being written is complete. They do not depend on the disk's speed.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.rounds = checkpoints.rounds()
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[Path] | None = None

    def save(self, server_round: int, tree: Tree) -> None:
        """Begin to write a checkpoint, once the one before is complete.

        Args:
            server_round: The round that has ended.
            tree: What the run needs to resume. It may change after this call.

        Raises:
            CheckpointError: If a file cannot hold the tree, or the one before could not be written.
        """
        content = to_bytes(tree)
        self.wait()
        newest = self._checkpoints.rounds()[-1:]
        self.rounds = sorted({*self._checkpoints.rounds_with(server_round), *newest})
        self._writing = self._thread.submit(self._checkpoints.write, server_round, content)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            CheckpointError: If it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
