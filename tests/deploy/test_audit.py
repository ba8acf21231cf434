"""The audit of a SuperLink: each event once, also over restarts, rotation and power failures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.state.schema.corestate_models import FlwrBase, Task
from flwr.supercore.state.schema.linkstate_models import LinkStateBase, Node, Run
from sqlalchemy import Engine, create_engine, insert, update

from tests.support.federations import Federation
from tests.support.homes import NOW
from tests.support.machines import ROOT, Machine, switch_off
from tests.support.waiting import wait_until

MINUTE = timedelta(minutes=1)


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the module, which lies beside the scripts."""
    monkeypatch.syspath_prepend(str(ROOT / "deploy"))
    return import_module("audit")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Make a database with Flower's tables, and a node that was registered."""
    engine = create_engine(f"sqlite:///{tmp_path}/state.db")
    FlwrBase.metadata.create_all(engine)
    LinkStateBase.metadata.create_all(engine)
    with engine.begin() as database:
        values = {"node_id": -5, "name": "hospital-a", "registered_at": NOW.isoformat()}
        database.execute(insert(Node).values(**values, public_key=b"no key"))
    yield engine
    engine.dispose()


def change(engine: Engine, **columns: str) -> None:
    with engine.begin() as database:
        database.execute(update(Node).values(**columns))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_have_who_what_and_when(audit: Any, engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as database:
        database.execute(
            insert(Task).values(
                task_id=7, type="flwr-serverapp", run_id=-1, pending_at=NOW + MINUTE,
                finished_at=NOW + 2 * MINUTE, sub_status="failed", details="no disk",
            )
        )  # fmt: skip
        database.execute(
            insert(Run).values(
                run_id=-1, fab_id="fixbn/app", fab_version="1.0", fab_hash="abc",
                override_config='{"batch-size": 4}', flwr_aid="alice", primary_task_id=7,
            )
        )  # fmt: skip
    node = {"node": 2**64 - 5, "name": "hospital-a", "key": None}
    assert audit.events(tmp_path / "state.db") == [
        {"time": NOW.isoformat(), "event": "node-registered", **node},
        {
            "time": (NOW + MINUTE).isoformat(),
            "event": "run-started",
            "run": 2**64 - 1,
            "app": "fixbn/app 1.0",
            "app-hash": "abc",
            "account": "alice",
            "config": {"batch-size": 4},
        },
        {
            "time": (NOW + 2 * MINUTE).isoformat(),
            "event": "run-ended",
            "run": 2**64 - 1,
            "status": "failed",
            "details": "no disk",
        },
    ]
    assert audit.events(tmp_path / "none.db") == []


def test_each_event_is_written_once_also_by_a_later_process(
    audit: Any, engine: Engine, tmp_path: Path
) -> None:
    database, path = tmp_path / "state.db", tmp_path / "audit.jsonl"

    def found(writer: Any) -> list[str]:
        writer.add(audit.events(database))
        return [line["event"] for line in lines(path)]

    first = audit.Audit(path)
    assert found(first) == found(first) == ["node-registered"]
    change(engine, last_activated_at=(NOW + MINUTE).isoformat())
    assert found(first) == ["node-registered", "node-joined"]
    change(engine, last_deactivated_at=(NOW + 2 * MINUTE).isoformat())
    later = audit.Audit(path)
    assert found(later) == ["node-registered", "node-joined", "node-left"]
    change(engine, last_activated_at=(NOW + 3 * MINUTE).isoformat())
    assert found(later)[3:] == ["node-joined"]
    assert found(audit.Audit(path))[4:] == []
    assert oct(path.stat().st_mode)[-3:] == "600"


def test_a_line_that_was_cut_is_written_again(audit: Any, engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"time": "2026-')
    audit.Audit(path).add(audit.events(tmp_path / "state.db"))
    cut, line = path.read_text().splitlines()
    assert cut == '{"time": "2026-'
    assert json.loads(line)["event"] == "node-registered"


def test_an_audit_that_cannot_be_read_stops_the_start(audit: Any, tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(audit.DeployError) as caught:
        audit.start_audit(tmp_path, 1)
    problem = f"[Errno 21] Is a directory: '{tmp_path}/audit.jsonl'"
    assert str(caught.value) == (
        f"the audit cannot be read ({problem}): give its files to this user, or move them away."
    )


def test_what_a_deleted_file_held_is_not_written_again(
    audit: Any, engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    change(engine, last_activated_at=(NOW + 2 * MINUTE).isoformat())
    refused = {"time": (NOW + MINUTE).isoformat(), "event": "reply-refused", "node": 3}
    (tmp_path / "audit.jsonl.4").write_text(json.dumps(refused) + "\n")
    audit.Audit(path).add(audit.events(tmp_path / "state.db"))
    assert [line["event"] for line in lines(path)] == ["node-joined"]


@pytest.mark.slow
def test_the_audit_of_a_federation(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    try:
        _check(federation)
    finally:
        switch_off(federation.machines)


def _check(federation: Federation) -> None:
    link = federation.link
    path = link.home / ".fixbn" / "superlink" / "audit.jsonl"
    a, b = (federation.add(f"hospital-{name}", f"{part}/2") for part, name in enumerate("ab"))
    services = [node.start() for node in (a, b)]
    for service in services:
        service.wait_for("SuperNode ID: ")
    run = federation.start_run("run", num_server_rounds=1, freeze_after=1.0)
    a.order("train")
    b.order("fail")
    assert run.end() == 0
    assert services[1].stop() == 0

    def events() -> list[tuple[str, str | None]]:
        return [(line["event"], line.get("name")) for line in lines(path)]

    wait_until(lambda: ("node-left", "hospital-b") in events(), "the audit had the node's end")
    before = lines(path)
    by_event = {line["event"]: line for line in before}
    assert sorted(events(), key=str) == [
        ("node-joined", "hospital-a"),
        ("node-joined", "hospital-b"),
        ("node-left", "hospital-b"),
        ("node-registered", "hospital-a"),
        ("node-registered", "hospital-b"),
        ("reply-refused", None),
        ("run-ended", None),
        ("run-started", None),
    ]
    left, started, refused = (
        by_event[name] for name in ("node-left", "run-started", "reply-refused")
    )
    assert left["key"] == _ssh_fingerprint(b.machine, "keys/hospital-b.pub")
    assert (started["app"], started["config"]["num-server-rounds"]) == ("fixbn/fixbn-flwr 0.1.0", 1)
    assert federation.statuses() == {started["run"]: "finished:completed"}
    assert by_event["run-ended"]["status"] == "completed"
    assert refused["run"] == started["run"]
    assert (refused["round"], refused["node"]) == (1, left["node"])
    assert "the disk is full" in refused["reason"]

    link.switch_off()
    federation.start_superlink()
    b.start().wait_for("SuperNode ID: ")
    wait_until(
        lambda: [
            line
            for line in lines(path)[len(before) :]
            if (line["event"], line["node"]) == ("node-joined", left["node"])
        ],
        "the audit had the node's return",
    )
    for machine, what in ((link, "SuperLink"), (b.machine, "SuperNode")):
        report = machine.run("fixbn doctor --deployment").stdout
        assert re.search(rf"ok +{what} in \S+: \d+ processes with \d+ MB, [\d.]+ GB free", report)
        kept = machine.run("fixbn clean --yes --older-than 1").stdout
        assert kept == "Nothing that can be deleted is older than 1 days.\n"
    keys = [
        (line["event"], line.get("run"), line.get("node"), line["time"]) for line in lines(path)
    ]
    assert len(keys) == len(set(keys))


def _ssh_fingerprint(machine: Machine, key: str) -> str:
    return machine.run(f"ssh-keygen -lf {key}").stdout.split()[1]
