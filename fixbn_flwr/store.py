"""Where a client's momentum buffers live between rounds.

Either in Flower's ``context.state``, which follows a client through a simulation or a SuperNode's
life without any set-up, or, where ``state-dir`` is set (in the node's config, else in the run's),
in one file a client below that directory, which survives the process as well.

Both hold the same bytes: a safetensors file whose metadata carry the run and the round that wrote
it. Buffers of another run, or of a round that has not come yet (the server gave up waiting for that
reply, so it never saw the training that made them), are dropped with a line in the log.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import cast

import safetensors.torch
from flwr.app import ConfigRecord, Context

from fixbn_flwr.files import write_atomically
from fixbn_flwr.momentum import Buffers

KEY = "fixbn-momentum"

_logger = logging.getLogger("flwr.fixbn")


def save_buffers(context: Context, server_round: int, buffers: Buffers) -> None:
    """Keep ``buffers`` for this client's next round, in place of what was kept before."""
    stamp = {"run": str(context.run_id), "round": str(server_round)}
    content = safetensors.torch.save(buffers, metadata=stamp)
    path = _file_of(context)
    if path is None:
        context.state[KEY] = ConfigRecord({KEY: content})
    else:
        write_atomically(path, content)


def load_buffers(context: Context, server_round: int) -> Buffers:
    """Return what this client kept in an earlier round of this run; empty if there is nothing."""
    path = _file_of(context)
    try:
        if path is not None:
            content = path.read_bytes() if path.exists() else None
        else:
            record = context.state.config_records.get(KEY)
            content = None if record is None else cast(bytes, record[KEY])
        if content is None:
            return {}
        buffers = safetensors.torch.load(content)
        run, kept_round = _stamp_of(content)
    # Whatever was done to the bytes: safetensors, JSON and torch raise errors of many types.
    except Exception as error:
        _logger.warning("kept momentum dropped, unreadable (%s): starting from zero", error)
        return {}
    if run != context.run_id or kept_round >= server_round:
        _logger.warning(
            "kept momentum dropped, it is of run %s round %s and this is run %s round %s: "
            "starting from zero",
            run, kept_round, context.run_id, server_round,
        )  # fmt: skip
        return {}
    return buffers


def _stamp_of(content: bytes) -> tuple[int, int]:
    """Return run and round out of a safetensors file: header's length, header in JSON, data."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return int(header["__metadata__"]["run"]), int(header["__metadata__"]["round"])


def _file_of(context: Context) -> Path | None:
    """Return this client's file, or None where buffers live in ``context.state``."""
    directory = context.node_config.get("state-dir") or context.run_config.get("state-dir")
    if not directory:
        return None
    partition = context.node_config.get("partition-id")
    client = f"node-{context.node_id}" if partition is None else f"partition-{partition}"
    return Path(str(directory)) / str(context.run_id) / f"{client}.safetensors"
