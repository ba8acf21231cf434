"""Where a client's momentum buffers live between rounds.

Either in Flower's ``context.state``, which follows a client through a simulation or a SuperNode's
life without any set-up, or, where ``state-dir`` is set (in the node's config, else in the run's),
in files below that directory, which survive the process as well:

    <state-dir>/<run>/<client>/round-12.safetensors

Both hold the same bytes: a safetensors file whose metadata say of which run, round and model it is.
What is of another run or model, or of a round that has not come yet, is dropped with a line in the
log and never used. A run that can go on from a checkpoint tells from which ones: of files, those
that it would need then are kept beside the newest, so that the client goes back as well.
"""

from __future__ import annotations

import logging
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import safetensors.torch
from flwr.app import ConfigRecord, Context

from fixbn_flwr.errors import MomentumError
from fixbn_flwr.method.optimizer_buffers import Buffers
from fixbn_flwr.method.round_config import RoundConfig
from fixbn_flwr.persistence.atomic_files import (
    remove_partial_files,
    safetensors_metadata,
    write_atomically,
)

KEY = "fixbn-momentum"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")

_logger = logging.getLogger("flwr.fixbn")


@dataclass(frozen=True)
class Stamp:
    """Whose buffers these are.

    Attributes:
        run: Flower's number of the run that they were trained in.
        round: the round, counted from 1.
        model: the model's :func:`fixbn_flwr.method.optimizer_buffers.fingerprint`.
    """

    run: int
    round: int
    model: str

    def as_metadata(self) -> dict[str, str]:
        """Return the metadata of a safetensors file."""
        return {"run": str(self.run), "round": str(self.round), "model": self.model}

    def is_before(self, run: int, asked: RoundConfig) -> bool:
        """Tell whether a run, or one that it was resumed from, was here before a round."""
        last = asked.server_round - 1 if self.run == run else asked.resumed.get(self.run, 0)
        return self.round <= min(last, asked.server_round - 1)


def save_buffers(context: Context, asked: RoundConfig, buffers: Buffers, model: str) -> None:
    """Keep ``buffers`` for this client's next round, in place of what was kept before.

    Those of a training that diverged are not kept: every round that began with them would diverge.

    Raises:
        MomentumError: they are to be kept in a file, and it cannot be written.
    """
    if not _are_finite(buffers):
        _logger.warning(
            "momentum not kept, it holds NaN or infinity: what was kept before stays. A smaller "
            "learning rate keeps the training from diverging"
        )
        return
    stamp = Stamp(context.run_id, asked.server_round, model)
    content = safetensors.torch.save(buffers, metadata=stamp.as_metadata())
    folder = _folder_of(context, asked)
    if folder is None:
        context.state[KEY] = ConfigRecord({KEY: content})
        return
    if not folder.exists():
        _logger.info("momentum is kept in %s, %.1f MB a round", folder, len(content) / 1e6)
    try:
        write_atomically(_file(folder, asked.server_round), content)
        remove_partial_files(folder)
        rounds = _rounds_in(folder)
        needed = {max((r for r in rounds if r <= last), default=0) for last in asked.checkpoints}
        for superseded in set(rounds) - needed - {asked.server_round}:
            _file(folder, superseded).unlink(missing_ok=True)
    except OSError as error:
        raise MomentumError(
            f"momentum cannot be kept in {folder} ({error}): make room there, mend what is wrong "
            "with it, or name another directory as state-dir. What was kept before is whole."
        ) from error


def load_buffers(context: Context, asked: RoundConfig, model: str) -> Buffers:
    """Return what this client kept in an earlier round of this run; empty if there is nothing."""
    folder = _folder_of(context, asked)
    if folder is None:
        record = context.state.config_records.get(KEY)
        return (
            {} if record is None else _usable(cast(bytes, record.get(KEY)), context, asked, model)
        )
    for server_round in sorted(_rounds_in(folder), reverse=True):
        try:
            content = _file(folder, server_round).read_bytes()
        except OSError as error:
            return _dropped(f"unreadable ({error})")
        # Of a round that is run again, or that the run went back before: an older one may count.
        before = _stamp(content)
        if before is None or before.is_before(context.run_id, asked):
            return _usable(content, context, asked, model)
        with suppress(OSError):  # it is not used in any case
            _file(folder, server_round).unlink()
        _logger.warning("kept momentum removed, %s", _other(before, context, asked))
    if asked.resumed:
        _logger.info(
            "nothing in %s: a client that has trained before has lost its momentum", folder
        )
    return {}


def _usable(content: bytes, context: Context, asked: RoundConfig, model: str) -> Buffers:
    """Return the buffers of a file; none, with a line in the log, if they must not be used."""
    stamp = _stamp(content)
    if stamp is None:
        return _dropped("unreadable: it is no safetensors file with run, round and model")
    if not stamp.is_before(context.run_id, asked):
        return _dropped(_other(stamp, context, asked))
    if stamp.model != model:
        return _dropped(f"it is of another model ({stamp.model}, and this is {model})")
    try:
        buffers = safetensors.torch.load(content)
    except Exception as error:
        return _dropped(f"unreadable ({error})")
    return buffers if _are_finite(buffers) else _dropped("it holds NaN or infinity")


def _are_finite(buffers: Buffers) -> bool:
    # In one pass, and without an array of truths: NaN wins against every number.
    ends = (end for buffer in buffers.values() if buffer.numel() for end in buffer.aminmax())
    return all(math.isfinite(end) for end in ends)


def _dropped(why: str) -> Buffers:
    _logger.warning("kept momentum dropped, %s: starting without it", why)
    return {}


def _other(stamp: Stamp, context: Context, asked: RoundConfig) -> str:
    return (
        f"it is of run {stamp.run} round {stamp.round} and this is run {context.run_id} round "
        f"{asked.server_round}"
    )


def _stamp(content: bytes) -> Stamp | None:
    """Read the stamp out of a safetensors file; None if there is none."""
    try:
        metadata = safetensors_metadata(content)
        return Stamp(int(metadata["run"]), int(metadata["round"]), str(metadata["model"]))
    except Exception:  # whatever was done to the bytes
        return None


def _folder_of(context: Context, asked: RoundConfig) -> Path | None:
    """Return this client's folder, or None where buffers live in ``context.state``."""
    directory = context.node_config.get("state-dir") or context.run_config.get("state-dir")
    if not directory:
        return None
    first_run = next(iter(asked.resumed), context.run_id)
    partition = context.node_config.get("partition-id")
    name = str(context.node_config.get("name", ""))
    if partition is not None:
        client = f"partition-{partition}"
    else:  # a name lasts; Flower's number of a node without a registered key does not
        client = f"node-{name if _NAME.fullmatch(name) else context.node_id}"
    return Path(str(directory)).expanduser() / str(first_run) / client


def _file(folder: Path, server_round: int) -> Path:
    return folder / f"round-{server_round}.safetensors"


def _rounds_in(folder: Path) -> list[int]:
    """Return the rounds of which a folder has files."""
    stems = [path.stem.removeprefix("round-") for path in folder.glob("round-*.safetensors")]
    return [int(stem) for stem in stems if stem.isdecimal()]
