"""The data in shared memory: which runs of a process share it."""

from pathlib import Path

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.shared_data import share_data
from tests.support.image_trees import write_images


def test_runs_that_differ_in_the_seed_share_a_built_in_tasks_data() -> None:
    first = share_data(Settings(seed=0))
    assert share_data(Settings(seed=1, augmentation="none")) is first


def test_the_seed_chooses_the_test_images_of_a_folder(shared_data: Path, tmp_path: Path) -> None:
    write_images(shared_data, tmp_path, "train", domain=0, per_class=3, classes=2)
    runs = [Settings(task="folder", data_dir=str(tmp_path), seed=seed) for seed in (0, 0, 1)]
    first, again, other = [share_data(run) for run in runs]
    assert first is again
    assert first is not other
