"""The recorded versions and hardware."""

import os
import platform
import tomllib
from pathlib import Path

import pytest
import torch

from fixbn_flwr.app.runs import environment

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]


def test_versions_name_this_package_and_its_main_dependencies() -> None:
    assert environment.versions() == {
        "fixbn_flwr": PROJECT["version"],
        "flwr": pytest.importorskip("flwr").__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def test_an_app_unpacked_by_flower_reports_its_own_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "7.8.9"\n')
    module = tmp_path / "fixbn_flwr" / "app" / "runs" / "environment.py"
    monkeypatch.setattr(environment, "__file__", str(module))
    assert environment.versions()["fixbn_flwr"] == "7.8.9"
    (tmp_path / "pyproject.toml").unlink()  # as if installed from a wheel
    assert environment.versions()["fixbn_flwr"] == PROJECT["version"]


def test_hardware_names_processor_cores_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    here = environment.hardware()
    assert here["cpu"]
    assert (here["cores"], here["gpu"]) == (os.cpu_count(), "A card")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.hardware()["gpu"] is None


def test_a_machine_without_cpuinfo_still_has_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", fail)
    assert environment.hardware()["cpu"] in (platform.processor(), platform.machine())
