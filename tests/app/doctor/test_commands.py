"""`fixbn doctor`: what it prints for this machine, and for problems."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from fixbn_flwr.app.cli import cli
from fixbn_flwr.app.command_errors import run_commands
from fixbn_flwr.app.doctor import checks
from fixbn_flwr.app.doctor.finding import Finding


def doctor(*words: str) -> tuple[int, list[str]]:
    """Return the exit code and the lines of `fixbn doctor`."""
    result = CliRunner().invoke(cli, ["doctor", *words], catch_exceptions=False)
    return result.exit_code, result.output.splitlines()


def test_a_healthy_machine_has_no_problems(elsewhere: Path) -> None:
    code, lines = doctor("--state-dir", "momentum")
    assert code == 0
    assert not [line for line in lines if line.startswith("problem")]
    text = "\n".join(lines)
    for expected in (
        f"fixbn-flwr {version('fixbn-flwr')}",
        f"flwr {version('flwr')}, supported (1.41 to 1.42)",
        f"torch {torch.__version__}",
        f"ray {version('ray')}",
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPU cores",
        f"GB free for run folders in {elsewhere}/runs",
        f"GB free for the clients' momentum in {elsewhere}/momentum",
    ):
        assert expected in text
    assert not any(elsewhere.iterdir())


def test_a_problem_has_its_remedy_and_exit_code_1(elsewhere: Path) -> None:
    (elsewhere / "file").touch()
    code, lines = doctor("--output-dir", "file/runs")
    assert code == 1
    (place,) = [number for number, line in enumerate(lines) if line.startswith("problem")]
    assert "/file/runs cannot be written" in lines[place]
    assert lines[place + 1] == "         -> set output-dir to another folder"


def test_an_old_flower_does_not_stop_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = version
    old = lambda name: "1.30.0" if name == "flwr" else real(name)  # noqa: E731
    monkeypatch.setattr("fixbn_flwr.app.command_errors.version", old)
    monkeypatch.setattr(checks, "version", old)
    with pytest.raises(SystemExit) as ended:
        run_commands(cli, ["doctor"])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "problem  flwr 1.30.0 is installed, and the app needs 1.41 or newer" in out
    assert '-> Update it with `pip install "fixbn-flwr[app]"`.' in out


@pytest.mark.parametrize(
    ("installed", "text", "is_problem"),
    [
        ("1.41.0", "supported", False),
        ("1.42.3", "supported", False),
        ("1.43.0", "newer than 1.42, the newest that was tested", False),
        ("2.0.0", "newer than 1.42", False),
        ("1.40.9", "the app needs 1.41 or newer", True),
    ],
)
def test_flowers_version_is_judged(installed: str, text: str, is_problem: bool) -> None:
    finding = checks._flower(installed)
    assert text in finding.text
    assert finding.is_problem is is_problem
    assert (finding.remedy != "") is (text != "supported")


def test_an_old_torch_is_a_problem() -> None:
    assert checks._torch("2.3.1").is_problem
    assert not checks._torch("2.4.0+cpu").remedy


def test_missing_packages_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name in ("PIL", "rich") else 1)
    (missing,) = [f for f in checks.software() if f.text.startswith("not installed")]
    assert missing.text == "not installed: PIL, rich"
    assert "fixbn-flwr[app]" in missing.remedy


def test_without_ray_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "version", lambda _: version("no-such-package"))
    finding = checks._ray()
    assert not finding.is_problem
    assert "fixbn-flwr[app,simulation]" in finding.remedy


def test_memory_is_read_in_bytes() -> None:
    text = "MemTotal:       16000000 kB\nMemAvailable:     500000 kB\nHugePages_Total:       0\n"
    assert checks._memory(text) == {"MemTotal": 16_384_000_000, "MemAvailable": 512_000_000}


def test_little_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ENOUGH_MEMORY", 1e6)
    (memory,) = [f for f in checks.machine() if "memory free" in f.text]
    assert memory.remedy.endswith("--workers 1")


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=50_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    finding = checks.disk(tmp_path / "runs", "run folders", "output-dir")
    assert finding.text == f"0.1 GB free for run folders in {tmp_path}/runs"
    assert finding.remedy == "make room there, or set output-dir to a folder on a larger disk"


def test_a_folder_that_cannot_be_looked_up_does_not_stop_the_doctor(tmp_path: Path) -> None:
    assert str(tmp_path) in checks.disk(tmp_path / ("a" * 300), "runs", "output-dir").text


def test_a_gpu_that_torch_cannot_use_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(checks, "_DRIVER", tmp_path)
    (finding,) = checks._gpus()
    assert "NVIDIA's driver" in finding.text
    assert "CUDA_VISIBLE_DEVICES" in finding.remedy
    assert not finding.is_problem


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="A GPU", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    assert list(checks._gpus()) == [
        Finding("GPU 0: A GPU, 80 GB"),
        Finding("GPU 1: A GPU, 80 GB"),
    ]
