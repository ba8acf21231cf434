"""An exported folder: its files, and what is kept, replaced or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fixbn_flwr.app.inference.export import export
from fixbn_flwr.app.inference.loading import load
from fixbn_flwr.errors import ConfigError

# torch.jit.load, in current versions of torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


@pytest.mark.parametrize(
    ("file_format", "name"),
    [("onnx", "model.onnx"), ("torchscript", "model.pt"), ("safetensors", "model.safetensors")],
)
def test_a_model_has_its_config_and_card_beside_it(
    file_format: str, name: str, run_folder: Path, tmp_path: Path
) -> None:
    path = export(run_folder, file_format, output=tmp_path / "new" / "folder")  # type: ignore[arg-type]
    assert path == tmp_path / "new" / "folder" / name
    assert sorted(file.name for file in path.parent.iterdir()) == ["README.md", "config.json", name]


def test_the_default_folder_names_the_model(run_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    assert export(copy, "safetensors").parent == copy / "export-best"
    final = export(copy, "safetensors", "final")
    assert final.parent == copy / "export-final"
    assert final.read_bytes() == (run_folder / "final.safetensors").read_bytes()


def test_the_output_may_be_below_the_home_directory(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = export(run_folder, "safetensors", output=Path("~/exported"))
    assert path == tmp_path / "exported" / "model.safetensors"
    assert path.exists()


def test_torchscript_has_the_outputs_of_the_chosen_model(run_folder: Path, tmp_path: Path) -> None:
    path = export(run_folder, "torchscript", "final", tmp_path)
    images = torch.rand(3, 1, 8, 8)
    exported = torch.jit.load(path)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(exported(images), load(run_folder, "final")(images))


def test_the_config_has_the_signature_and_no_path_of_the_machine(
    run_folder: Path, tmp_path: Path
) -> None:
    export(run_folder, "safetensors", output=tmp_path)
    text = (tmp_path / "config.json").read_text()
    config = json.loads(text)
    assert config["signature"]["class_names"] == list("0123456789")
    assert (config["which"], config["freeze_round"], config["clients"]) == ("best", 2, 5)
    assert config["run_config"]["partition"] == "classes"
    recorded = json.loads((run_folder / "config.json").read_text())["run_config"]["output-dir"]
    assert recorded not in text
    assert "hardware" not in config


def test_a_card_that_was_edited_is_kept(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(run_folder, "safetensors", output=tmp_path)
    export(run_folder, "torchscript", output=tmp_path)
    assert caplog.messages == []
    card = tmp_path / "README.md"
    edited = card.read_text().replace("license: other", "license: mit")
    card.write_text(edited)
    export(run_folder, "safetensors", output=tmp_path)
    assert card.read_text() == edited
    assert caplog.messages == [
        f"{card} differs from the new model card and is kept. Delete it to get a new one."
    ]


def test_what_cannot_be_exported_is_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"format is 'tflite', .*: use onnx, torchscript, safe"):
        export(run_folder, "tflite")  # type: ignore[arg-type]
    exported = export(run_folder, "safetensors", output=tmp_path / "there").parent
    with pytest.raises(ConfigError, match=r"is not the folder of a run: .*; name a run that"):
        export(exported, "onnx")
    config = (run_folder / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"is the folder of a run, whose config.json would be lo"):
        export(run_folder, "safetensors", output=run_folder)
    assert (run_folder / "config.json").read_bytes() == config
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file cannot be written .*: choose another folder with"):
        export(run_folder, "safetensors", output=tmp_path / "file")
