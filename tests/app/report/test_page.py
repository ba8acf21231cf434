"""A report of real runs on digits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fixbn_flwr.app.report.page import write_report
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import image_files
from tests.support.image_trees import write_images
from tests.support.pages import ROOT
from tests.support.whole_app import run_app


@pytest.fixture
def page(report: Path) -> str:
    return report.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    without = re.sub(r"<(svg|style).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", without).split())


def test_it_needs_no_network(page: str) -> None:
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert sources
    assert all(source.startswith(("#", "data:")) for source in sources)
    assert "<script" not in page
    assert "@import" not in page


def test_it_has_every_part_for_every_run(page: str) -> None:
    text = text_of(page)
    for part in ("Accuracy and loss", "Clients", "statistics lie apart", "Confusion matrix",
                 "Bytes, seconds and dropped clients"):  # fmt: skip
        assert part in text
    assert "round 2" in text  # T*
    assert "nothing is frozen" in text
    assert "Not available" not in text
    assert page.count('src="data:image/svg') == page.count("<img") >= 8


def test_it_shows_the_validations_of_each_client(page: str) -> None:
    section = page.partition('<h2 id="validation">')[2].partition('<h2 id="clients">')[0]
    assert section.count('src="data:image/svg') == 5  # mean, worst, spread, loss, and the clients
    assert "Validation accuracy of 3 clients of fixbn by round" in section
    text = text_of(section)
    assert re.search(r"client accuracy, round \d \(best\) round 3 \(last\)", text)
    assert (
        len(re.findall(r"<th scope=\"row\">[012]</th><td>[\d.]+%</td><td>[\d.]+%</td>", section))
        == 3
    )
    assert "plain No client has held out images (validation-share)." in text
    assert re.search(
        r"best model [\d.]+% at the clients, [\d.]+% in the test, round \d –", text_of(page)
    )


def test_it_says_how_the_configs_differ(page: str) -> None:
    text = text_of(page)
    assert re.search(r"learning-rate ≠ 0\.05 0\.05 0\.02", text)
    assert re.search(r"freeze-after ≠ 0\.5 2 1\.0", text)
    assert "batch-size 16 8 8" in text  # not the default, and the same in both


def test_old_runs_without_models_and_signals_are_shown_too(tmp_path: Path) -> None:
    runs = [ROOT / "simulation" / "results" / "digits" / name for name in ("FixBN", "BN")]
    write_report(runs, tmp_path / "report.html")
    text = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "No round of this run has measured it." in text
    assert "Not available on this machine" in text
    assert "93.3%" in text


@pytest.mark.parametrize("in_memory", [0, image_files.IN_MEMORY], ids=["files", "tensors"])
def test_without_test_images_the_clients_are_shown(
    in_memory: int, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "IN_MEMORY", in_memory)
    data = tmp_path / "data"
    write_images(shared_data, data / "train", "train", 0, per_class=8, classes=2)
    (data / "test").mkdir()
    config = {"task": "folder", "data-dir": str(data), "partition": "iid", "batch-size": 4,
              "evaluate-every": 0}  # fmt: skip
    write_report([run_app(tmp_path / "runs", 2, config)], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "There are no test images on this machine." in text_of(page)
    assert len(re.findall(r'<th scope="row">[01]</th><td>8</td><td>[\d.]+%</td>', page)) == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not the folder of a run: .*; name a"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_does_not_exist_is_named_before_the_output(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"typo is not the folder of a run: .*; name a"):
        write_report([tmp_path / "typo"], tmp_path / "typo" / "report.html")
