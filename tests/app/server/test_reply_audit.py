"""The audit's lines about dropped replies."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fixbn_flwr.app.server.reply_audit import AUDIT, audited
from fixbn_flwr.log import logger
from fixbn_flwr.server.dropped_replies import DroppedReply, DroppedReplyLog


def drop(log: DroppedReplyLog) -> None:
    log.add(
        4, [DroppedReply(7, 'bad\n"reply"'), DroppedReply(8, "has no images", no_examples=True)]
    )


def test_a_dropped_reply_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    monkeypatch.setenv(AUDIT, str(path))
    before = datetime.now(UTC)
    with audited(12):
        logger.warning("another line")
        drop(DroppedReplyLog())
    drop(DroppedReplyLog())
    (text,) = path.read_text().splitlines()
    line = json.loads(text)
    assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
    assert line == {
        "event": "reply-refused",
        "run": 12,
        "round": 4,
        "node": 7,
        "reason": 'bad\n"reply"',
    }
    assert oct(path.stat().st_mode)[-3:] == "600"


def test_a_line_that_was_cut_ends_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"time": "2026-')
    monkeypatch.setenv(AUDIT, str(path))
    with audited(12):
        drop(DroppedReplyLog())
        drop(DroppedReplyLog())
    cut, *written = path.read_text().splitlines()
    assert cut == '{"time": "2026-'
    assert [json.loads(line)["node"] for line in written] == [7, 7]


def test_without_an_audit_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(AUDIT, raising=False)
    monkeypatch.chdir(tmp_path)
    with audited(12):
        drop(DroppedReplyLog())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(AUDIT, "/dev/full")
    with audited(12):
        drop(DroppedReplyLog())
    assert "No space left on device" in capsys.readouterr().err
