"""Store a client's momentum buffers between rounds.

By default the buffers are in Flower's ``context.state``, which lasts as long as the simulation or
the SuperNode. If ``state-dir`` is set in the node config or the run config, they are in files below
that directory, which outlive the process:

    <state-dir>/<run>/<client>/round-12.safetensors

Both hold the same bytes: a safetensors file whose metadata names the run, round and model. Buffers
of another run or model, or of a later round, are dropped with a warning. The server announces its
checkpoint rounds, so clients can roll back too: the files of these rounds are kept.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from flwr.common import ConfigRecord, Context

from fixbn_flwr.errors import MomentumError
from fixbn_flwr.log import logger
from fixbn_flwr.method.optimizer_buffers import Buffers
from fixbn_flwr.method.round_config import RoundConfig
from fixbn_flwr.persistence.atomic_files import (
    remove_partial_files,
    safetensors_metadata,
    write_atomically,
)

KEY = "fixbn-momentum"
_KEPT_KEY = "fixbn-kept-momentum"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class Stamp:
    """The origin of stored buffers.

    Attributes:
        run: Flower's id of the run.
        round: The round, counted from 1.
        model: The model's ``fixbn_flwr.method.optimizer_buffers.fingerprint``.
    """

    run: int
    round: int
    model: str

    def as_metadata(self) -> dict[str, str]:
        """Return the metadata of a safetensors file."""
        return {"run": str(self.run), "round": str(self.round), "model": self.model}

    def precedes(self, run: int, config: RoundConfig) -> bool:
        """Return whether the buffers are of an earlier round of this run, or a run it resumes.

        Rounds that the run has gone back from do not count.
        """
        last = config.server_round - 1 if self.run == run else config.resumed.get(self.run, 0)
        after, until = config.discarded or (0, 0)
        return self.round <= min(last, config.server_round - 1) and not after < self.round <= until


def save_buffers(context: Context, config: RoundConfig, buffers: Buffers, model: str) -> None:
    """Save ``buffers`` for this client's next round, replacing earlier ones.

    Buffers with NaN or infinity are not saved, because every round that starts from them diverges.

    Args:
        context: The client's context.
        config: The server's instructions for this round.
        buffers: The buffers by key.
        model: The model's fingerprint.

    Raises:
        MomentumError: If the file cannot be written.
    """
    if not _are_finite(buffers):
        logger.warning(
            "momentum not saved, because it holds NaN or infinity: the earlier momentum is kept. "
            "Lower the learning rate so that training does not diverge"
        )
        return
    stamp = Stamp(context.run_id, config.server_round, model)
    content = safetensors.torch.save(buffers, metadata=stamp.as_metadata())
    folder = _folder_of(context, config)
    if folder is None:
        context.state[KEY] = ConfigRecord({KEY: content, **_kept(context, config)})
        return
    if not folder.exists():
        logger.info("saving momentum in %s, %.1f MB per round", folder, len(content) / 1e6)
    try:
        write_atomically(_file(folder, config.server_round), content)
        remove_partial_files(folder)
        rounds = _rounds_in(folder)
        for_checkpoints = {
            max((r for r in rounds if r <= checkpoint), default=0)
            for checkpoint in _rounds_to_keep(config)
        }
        for superseded in set(rounds) - for_checkpoints - {config.server_round}:
            _file(folder, superseded).unlink(missing_ok=True)
    except OSError as error:
        raise MomentumError(
            f"momentum cannot be saved in {folder} ({error}): free space there, fix the directory, "
            "or set state-dir to another one. The momentum saved earlier is intact."
        ) from error


def load_buffers(context: Context, config: RoundConfig, model: str) -> Buffers:
    """Return the buffers that this client saved in an earlier round of this run.

    Args:
        context: The client's context.
        config: The server's instructions for this round.
        model: The model's fingerprint.

    Returns:
        The buffers by key; empty if there are none or they cannot be used.
    """
    folder = _folder_of(context, config)
    if folder is None:
        contents = _in_state(context)
        counts = [c for c in contents if (s := _stamp(c)) and s.precedes(context.run_id, config)]
        return _usable((counts or contents)[0], context, config, model) if contents else {}
    for server_round in sorted(_rounds_in(folder), reverse=True):
        try:
            content = _file(folder, server_round).read_bytes()
        except OSError as error:
            return _dropped(f"unreadable ({error})")
        # A newer file is left over if the run was rolled back; an older one may still be valid.
        stamp = _stamp(content)
        if stamp is None or stamp.precedes(context.run_id, config):
            return _usable(content, context, config, model)
        of_this_round = (stamp.run, stamp.round) == (context.run_id, config.server_round)
        if not of_this_round:  # else the next round starts from it if this training fails
            with suppress(OSError):  # the file is not used, removed or not
                _file(folder, server_round).unlink()
        what = "not used" if of_this_round else "removed"
        logger.warning("saved momentum %s, %s", what, _mismatch(stamp, context, config))
    if config.resumed:
        logger.info("no momentum in %s: if this client trained before, it is lost", folder)
    return {}


def _rounds_to_keep(config: RoundConfig) -> list[int]:
    """Return the rounds after which the run can be resumed, or may go back to."""
    return [*config.checkpoints, *([] if config.kept_round is None else [config.kept_round])]


def _kept(context: Context, config: RoundConfig) -> dict[str, bytes]:
    """Return the saved buffers of the round that the run may go back to, under another key.

    Those of checkpoints are not needed: ``context.state`` does not outlive the run.
    """
    for content in _in_state(context):
        stamp = _stamp(content)
        if stamp and config.kept_round is not None and stamp.round <= config.kept_round:
            return {_KEPT_KEY: content}
    return {}


def _in_state(context: Context) -> list[bytes]:
    """Return the buffers in ``context.state``, the newest first."""
    record = context.state.config_records.get(KEY, ConfigRecord())
    contents = [cast(bytes, content) for content in record.values()]
    return sorted(contents, key=lambda c: s.round if (s := _stamp(c)) else 0, reverse=True)


def _usable(content: bytes, context: Context, config: RoundConfig, model: str) -> Buffers:
    """Return the buffers in a file, or none, with a warning, if they must not be used."""
    stamp = _stamp(content)
    if stamp is None:
        return _dropped("unreadable: not a safetensors file with run, round and model")
    if not stamp.precedes(context.run_id, config):
        return _dropped(_mismatch(stamp, context, config))
    if stamp.model != model:
        return _dropped(f"it is of another model ({stamp.model}; this one is {model})")
    try:
        buffers = safetensors.torch.load(content)
    except Exception as error:
        return _dropped(f"unreadable ({error})")
    return buffers if _are_finite(buffers) else _dropped("it holds NaN or infinity")


def _are_finite(buffers: Buffers) -> bool:
    # aminmax takes one pass and no mask; NaN propagates to both ends.
    reals = (torch.view_as_real(b) if b.is_complex() else b for b in buffers.values())
    ends = (end for buffer in reals if buffer.numel() for end in buffer.aminmax())
    return all(math.isfinite(end) for end in ends)


def _dropped(reason: str) -> Buffers:
    logger.warning("saved momentum dropped, %s: starting without it", reason)
    return {}


def _mismatch(stamp: Stamp, context: Context, config: RoundConfig) -> str:
    after, until = config.discarded or (0, 0)
    if (stamp.run, stamp.round) == (context.run_id, config.server_round):
        return (
            f"it is of round {stamp.round}, which is trained again: put all training of a round "
            "into one local_training block"
        )
    if stamp.run == context.run_id and after < stamp.round <= until:
        return f"it is of round {stamp.round}, and the run has gone back to round {after}"
    return (
        f"it is of run {stamp.run} round {stamp.round}, but this is run {context.run_id} round "
        f"{config.server_round}"
    )


def _stamp(content: bytes) -> Stamp | None:
    """Return the stamp of a safetensors file, or None if it has none."""
    try:
        metadata = safetensors_metadata(content)
        return Stamp(int(metadata["run"]), int(metadata["round"]), str(metadata["model"]))
    except Exception:  # damaged bytes raise errors of many types
        return None


def _folder_of(context: Context, config: RoundConfig) -> Path | None:
    """Return this client's folder, or None if its buffers are in ``context.state``."""
    directory = context.node_config.get("state-dir") or context.run_config.get("state-dir")
    if not directory:
        return None
    first_run = next(iter(config.resumed), context.run_id)
    partition = context.node_config.get("partition-id")
    name = str(context.node_config.get("name", ""))
    if partition is not None:
        client = f"partition-{partition}"
    else:  # Flower changes the id of a node without a registered key when it restarts
        client = f"node-{name if _NAME.fullmatch(name) else context.node_id}"
    return Path(str(directory)).expanduser() / str(first_run) / client


def _file(folder: Path, server_round: int) -> Path:
    return folder / f"round-{server_round}.safetensors"


def _rounds_in(folder: Path) -> list[int]:
    """Return the rounds that have a file in the folder."""
    stems = [path.stem.removeprefix("round-") for path in folder.glob("round-*.safetensors")]
    return [int(stem) for stem in stems if stem.isdecimal()]
