"""The checkpoints of a run: files from which it resumes as if it had never stopped.

    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    checkpoints.save(server_round, {"model": arrays, "strategy": strategy.state()})   # evaluate_fn
    server_round, tree = checkpoints.newest()                                         # afterwards

A file is written whole or not at all. Its name ends with the checksum of its content, so a damaged
file is recognised and the one before it is used. The content is a tree, see
:mod:`fixbn_flwr.persistence.safetensors_tree`. To start or resume a run in one call, see
:mod:`fixbn_flwr.persistence.resumable_start`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from fixbn_flwr.errors import CheckpointError, ConfigError
from fixbn_flwr.log import logger
from fixbn_flwr.persistence.atomic_files import remove_partial_files, write_atomically
from fixbn_flwr.persistence.safetensors_tree import Tree, from_bytes, to_bytes

_NAME = re.compile(r"round-(\d+)-([0-9a-f]{64})\.safetensors")


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: The folder. It is created with the first checkpoint.
        keep: The number of newest checkpoints to keep. Default: 2.
        always: Rounds whose checkpoints are kept as well. Default: none.

    Raises:
        ConfigError: If ``keep`` is below 1.
    """

    def __init__(self, folder: Path, keep: int = 2, always: Collection[int] = ()) -> None:
        if keep < 1:
            raise ConfigError(
                f"keep={keep} keeps no checkpoint to resume from: keep 1 or more of the newest."
            )
        self._folder = folder
        self._keep = keep
        self._always = always

    def save(self, server_round: int, tree: Tree) -> Path:
        """Write a checkpoint and remove those that are no longer needed.

        Args:
            server_round: The round that has ended.
            tree: What the run needs to resume.

        Returns:
            The path of the file.

        Raises:
            CheckpointError: If it cannot be written, or a file cannot hold the tree.
        """
        return self.write(server_round, to_bytes(tree))

    def write(self, server_round: int, content: bytes) -> Path:
        """Do what ``save`` does, for a tree in the form of ``to_bytes``."""
        name = f"round-{server_round:06d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        path = self._folder / name
        try:
            write_atomically(path, content)
            remove_partial_files(self._folder)
            kept = self.rounds_with(server_round)
            for its_round, other in self._of_round():
                # A checkpoint of a later round, or another one of this round, is damaged.
                damaged = its_round == server_round and other != path
                if its_round not in kept or damaged:
                    other.unlink()
        except OSError as error:
            raise CheckpointError(
                f"round {server_round} cannot be written to {self._folder} ({error}): free space "
                "there, or fix the folder, and resume the run. The checkpoint before is unchanged."
            ) from error
        return path

    def rounds(self) -> list[int]:
        """Return the rounds that have checkpoints, intact or not, the newest last."""
        return sorted({server_round for server_round, _ in self._of_round()})

    def rounds_with(self, server_round: int) -> list[int]:
        """Return the rounds that have checkpoints once this round's is written."""
        until_now = sorted(r for r in {*self.rounds(), server_round} if r <= server_round)
        return sorted({*until_now[-self._keep :], *self._always} & {*until_now})

    def newest(self) -> tuple[int, Tree]:
        """Return the round and the content of the newest intact checkpoint.

        Raises:
            CheckpointError: If there is none.
        """
        found = sorted(self._of_round(), reverse=True)
        for server_round, path in found:
            try:
                return server_round, _read(path)
            except CheckpointError as error:
                logger.warning("%s; trying the checkpoint before it", error)
        raise CheckpointError(
            f"{self._folder} has no intact checkpoint ({len(found)} damaged): the run cannot be "
            "resumed. Start it again."
        )

    def _of_round(self) -> list[tuple[int, Path]]:
        files = [(_NAME.fullmatch(path.name), path) for path in self._folder.glob("round-*")]
        return [(int(match[1]), path) for match, path in files if match]


def _read(path: Path) -> Tree:
    try:
        content = path.read_bytes()
        match = _NAME.fullmatch(path.name)
        if match is None or hashlib.sha256(content).hexdigest() != match[2]:
            raise CheckpointError("its checksum is not the one in its name")
        return from_bytes(content)
    except (OSError, CheckpointError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
