"""A folder of images as a task: its layouts, sizes and classes, and federations on it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fixbn_flwr
from fixbn_flwr.app import client_app
from fixbn_flwr.app.client import image_client
from fixbn_flwr.app.inference.pixels import pixels_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import DataOptions, Split, get_task, image_files, load_splits
from fixbn_flwr.tasks.pictures import size_of
from fixbn_flwr.testing import SerializingGrid
from tests.support.image_trees import DOMAINS, PACS, vary, write_images
from tests.support.whole_app import SMALL, rounds_of, run_app, serve


@pytest.fixture
def tree(shared_data: Path, tmp_path: Path) -> Path:
    """A folder with 5 training and 2 test images of each class, of three sizes, some grey."""
    write_images(shared_data, tmp_path / "data" / "train", "train", domain=2, per_class=5)
    write_images(shared_data, tmp_path / "data" / "test", "test", domain=2, per_class=2)
    vary(sorted((tmp_path / "data").rglob("*.jpg")))
    return tmp_path / "data"


@pytest.fixture
def flat(shared_data: Path, tmp_path: Path) -> Path:
    """A folder with 10 images of each of three classes, and no `train`."""
    write_images(shared_data, tmp_path / "flat", "train", domain=0, per_class=10, classes=3)
    return tmp_path / "flat"


def splits(folder: Path, **options: object) -> tuple[Split, Split]:
    given = DataOptions(folder, **options)  # type: ignore[arg-type]
    return load_splits(get_task("folder", given), folder)


def test_images_of_all_sizes_and_modes_become_square_and_rgb(tree: Path) -> None:
    train, test = splits(tree, image_size=32)
    assert (train.images[:].shape, test.images[:].shape) == ((35, 3, 32, 32), (14, 3, 32, 32))
    assert train.images[:].dtype == torch.uint8
    assert train.labels.tolist() == [label for label in range(7) for _ in range(5)]
    assert test.labels.tolist() == [label for label in range(7) for _ in range(2)]
    assert get_task("folder", DataOptions(tree, image_size=32)).class_names == PACS
    assert train.groups is None


def test_training_and_predictions_prepare_an_image_alike(tree: Path) -> None:
    train, _ = splits(tree, image_size=32)
    files = sorted((tree / "train").rglob("*.jpg"))
    assert {size_of(file, "") for file in files} == {(64, 64), (80, 120)}
    for place, file in enumerate(files):
        expected = pixels_of(file, (3, 32, 32), white=255) * 255
        assert torch.equal(train.images[:][place].float(), expected.round())


def test_mixed_sizes_need_an_image_size(tree: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"image-size = 0: .* such as 64x64 .*dog.* and 80x120 .*: set image-size to",
    ):
        splits(tree)


def test_one_size_is_kept(flat: Path) -> None:
    assert splits(flat)[0].images[:].shape == (24, 3, 64, 64)


def test_a_fifth_of_each_class_is_held_out_by_the_seed(flat: Path) -> None:
    train, test = splits(flat, seed=1)
    assert train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert test.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2
    same, other = splits(flat, seed=1, image_size=64)[1], splits(flat, seed=2)[1]
    assert torch.equal(test.images[:], same.images[:])
    assert not torch.equal(test.images[:], other.images[:])
    pixels = {image.numpy().tobytes() for image in (*train.images[:], *test.images[:])}
    assert len(pixels) == 30  # no image is in both


def test_an_empty_test_folder_holds_nothing_out(flat: Path, tmp_path: Path) -> None:
    shutil.move(flat, tmp_path / "site" / "train")
    (tmp_path / "site" / "test").mkdir()
    assert [len(split) for split in splits(tmp_path / "site")] == [30, 0]


def test_hidden_folders_are_left_out(flat: Path) -> None:
    hidden = flat / "dog" / ".ipynb_checkpoints" / "more"
    hidden.mkdir(parents=True)
    shutil.copy(next(flat.glob("dog/*.jpg")), hidden / "1-checkpoint.jpg")
    assert sum(map(len, splits(flat))) == 30


def test_a_hidden_folder_above_the_data_hides_nothing(flat: Path, tmp_path: Path) -> None:
    shutil.move(flat, tmp_path / ".cache" / "flat")
    assert sum(map(len, splits(tmp_path / ".cache" / "flat"))) == 30


def test_a_server_needs_test_images_only(flat: Path, tmp_path: Path) -> None:
    shutil.move(flat, tmp_path / "server" / "val")
    assert [len(split) for split in splits(tmp_path / "server")] == [0, 30]


def test_each_site_is_a_natural_client(shared_data: Path, tmp_path: Path) -> None:
    for domain, name in enumerate(DOMAINS):
        images = 2 + domain
        write_images(shared_data, tmp_path / name / "train", "train", domain, images, classes=2)
        write_images(shared_data, tmp_path / name / "test", "test", domain, 1, classes=2)
    train, test = splits(tmp_path)
    assert train.groups is not None
    assert train.groups.bincount().tolist() == [4, 6, 8, 10]
    assert len(test) == 8


def test_folders_that_are_no_sites_beside_sites_are_refused(flat: Path, tmp_path: Path) -> None:
    root = tmp_path / "sites"
    shutil.copytree(flat, root / "north" / "train")
    shutil.copytree(flat, root / "south" / "test")
    shutil.copytree(flat, root / "west")
    (root / ".git").mkdir()
    with pytest.raises(
        ConfigError, match=r"north with its folder train, and .* without train: south, west. Give"
    ):
        splits(root)
    (root / "south" / "train").mkdir()
    shutil.rmtree(root / "west")
    assert [len(split) for split in splits(root)] == [24, 36]


@pytest.mark.parametrize(("name", "use"), [("train", "training"), ("test", "test")])
def test_a_class_with_the_name_of_a_part_is_refused(flat: Path, name: str, use: str) -> None:
    (flat / "dog").rename(flat / name)
    with pytest.raises(
        ConfigError,
        match=rf"flat/{name} is taken for the {use} images, .* a class, as elephant beside it, move"
        rf" all classes into a folder train, so that this one is .*/flat/train/{name}",
    ):
        splits(flat)
    (flat / "classes.txt").write_text(f"{name}\nelephant\ngiraffe\n")
    with pytest.raises(ConfigError, match="is taken for"):
        splits(flat)
    inside = flat.with_name("parts") / "train"
    shutil.move(flat, inside)
    assert splits(inside.parent)[0].labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_classes_txt_names_the_classes_in_order(flat: Path) -> None:
    text = "giraffe\nzebra\n\n elephant\ndog\n"
    (flat / "classes.txt").write_text(text, encoding="utf-8-sig")  # as Windows's editors save it
    task = get_task("folder", DataOptions(flat))
    assert task.class_names == ("giraffe", "zebra", "elephant", "dog")
    assert load_splits(task, flat)[0].targets[:].bincount().tolist() == [8, 0, 8, 8]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("dog\nelephant\n", r"giraffe is not a class of .*classes.txt, which names dog, elephant"),
        ("dog\ndog\n", r"classes.txt names dog twice: name each class once"),
        (" \n", r"classes.txt names no class: write the name of a class on each line"),
    ],
)
def test_a_wrong_classes_txt_is_refused(flat: Path, classes: str, message: str) -> None:
    (flat / "classes.txt").write_text(classes)
    with pytest.raises(ConfigError, match=message):
        splits(flat)


def test_missing_or_damaged_data_is_refused(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data-dir is empty: set it to the folder with the im"):
        get_task("folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty has no folders, one for each class"):
        splits(tmp_path / "empty")
    (tmp_path / "no-images" / "cat").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"has 1 classes \(cat\): two or more are needed. Add"):
        splits(tmp_path / "no-images")
    (tmp_path / "no-images" / "dog").mkdir()
    with pytest.raises(ConfigError, match="has no images, such as PNG or JPEG files"):
        splits(tmp_path / "no-images")
    damaged = next(flat.glob("dog/*.jpg"))
    damaged.write_bytes(b"junk")
    with pytest.raises(ConfigError, match=rf"{damaged} cannot be read as an image .*replace the"):
        splits(flat)


def test_a_large_folder_stays_in_its_files(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = splits(flat)
    monkeypatch.setattr(image_files, "IN_MEMORY", 30 * 3 * 64 * 64 - 1)
    train, test = splits(flat, augmentation="none")  # another task, so it is loaded again
    assert isinstance(train.images, image_files.ImageFiles)
    assert isinstance(test.images, image_files.ImageFiles)
    assert torch.equal(train.images[:], expected.images[:])
    assert torch.equal(train.images[torch.tensor([5, 2])], expected.images[:][[5, 2]])


@pytest.mark.parametrize(("augmentation", "changed"), [("crop-and-flip", True), ("none", False)])
def test_the_augmentation_can_be_chosen(flat: Path, augmentation: str, changed: bool) -> None:
    task = get_task("folder", DataOptions(flat, augmentation=augmentation))  # type: ignore[arg-type]
    assert (task.augment is not None) is changed


def test_cropping_alone_mirrors_nothing(flat: Path) -> None:
    task = get_task("folder", DataOptions(flat, augmentation="crop"))
    assert task.augment is not None
    columns = torch.arange(1.0, 65.0).expand(20, 1, 64, 64)
    changed = task.augment(columns, torch.Generator().manual_seed(0))
    inside = changed[:, 0, 32]
    rises = torch.diff(inside, dim=1)
    assert set(rises[:, 8:-9].flatten().tolist()) == {1.0}  # by up to 64 / 8 pixels
    assert len(set(inside[:, 32].tolist())) > 5


def test_a_federation_trains_and_its_model_needs_no_data(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_config = {
        "task": "folder",
        "data-dir": str(tree),
        "image-size": 32,
        "partition": "iid",
        "batch-size": 4,
        "class-weights": "balanced",
        "precision": "bfloat16",
    }
    folder = run_app(tmp_path / "runs", 2, run_config)
    assert np.isfinite([row["test_loss"] for row in rounds_of(folder)]).all()
    image = next(tree.rglob("*.jpg")).read_bytes()
    shutil.rmtree(tree)
    (tmp_path / "image.jpg").write_bytes(image)
    model = fixbn_flwr.load(folder)
    assert (model.class_names, model.input_size) == (PACS, (3, 32, 32))
    (prediction,) = model.predict([tmp_path / "image.jpg"])
    assert prediction.label in PACS


class Hospitals(SerializingGrid):
    """Two nodes with their own folders."""

    def __init__(self, folders: list[Path], run_config: dict[str, object]) -> None:
        super().__init__(client_app.app, len(folders), run_config=run_config)  # type: ignore[arg-type]
        for context, folder in zip(self.contexts.values(), folders, strict=True):
            context.node_config.clear()
            context.node_config |= {"data-dir": str(folder), "name": folder.name}


@pytest.fixture
def hospitals(shared_data: Path, tmp_path: Path) -> list[Path]:
    """A server with test images of two classes, and two hospitals with both of them."""
    folders = [tmp_path / name for name in ("server", "north", "south")]
    write_images(shared_data, folders[0] / "test", "test", 0, per_class=2, classes=2)
    for domain, folder in enumerate(folders[1:]):
        write_images(shared_data, folder / "train", "train", domain, per_class=4, classes=2)
        (folder / "test").mkdir()
    return folders


def federated(folders: list[Path], output_dir: Path, **more: object) -> None:
    config = {
        **SMALL,
        "task": "folder",
        "data-dir": str(folders[0]),
        "output-dir": str(output_dir),
        "num-server-rounds": 1,
        "freeze-after": 1.0,
        "fraction-train": 1.0,
        **more,
    }
    serve(Hospitals(folders[1:], config), config)


def test_hospitals_train_on_their_own_folders(hospitals: list[Path], tmp_path: Path) -> None:
    federated(hospitals, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    (only,) = rounds_of(folder)
    assert only["clients"] == 2
    assert fixbn_flwr.load(folder, "final").class_names == ("dog", "elephant")


def test_a_hospital_without_test_images_trains_on_all_it_has(hospitals: list[Path]) -> None:
    (hospitals[1] / "test").rmdir()  # `train` alone
    shutil.rmtree(hospitals[2] / "test")
    for path in (hospitals[2] / "train").iterdir():  # classes alone
        path.rename(hospitals[2] / path.name)
    (hospitals[2] / "train").rmdir()
    grid = Hospitals(hospitals[1:], {**SMALL, "task": "folder"})
    clients = [image_client.make_client(context) for context in grid.contexts.values()]
    assert [len(client.training) for client in clients] == [8, 8]
    assert [len(split) for split in splits(hospitals[1])] == [6, 2]  # as a server's data


def test_a_hospital_with_other_classes_is_refused(hospitals: list[Path], tmp_path: Path) -> None:
    (hospitals[2] / "train" / "dog").rename(hospitals[2] / "train" / "wolf")
    with pytest.raises(
        ConfigError,
        match="has 2 classes and the server's 2; they differ in dog, wolf: give every machine a",
    ):
        federated(hospitals, tmp_path / "runs")
    shutil.rmtree(hospitals[2] / "train" / "wolf")
    (hospitals[2] / "train" / "elephant").with_name("extra").mkdir()
    for folder in hospitals:  # a class that a hospital does not have is no problem
        (folder / "classes.txt").write_text("dog\nelephant\nextra\n")
    federated(hospitals, tmp_path / "runs", **{"batch-size": 4, "image-size": 64})


def test_a_hospital_with_images_of_another_size_is_refused(
    hospitals: list[Path], tmp_path: Path
) -> None:
    for path in hospitals[2].rglob("*.jpg"):
        Image.open(path).resize((48, 32)).save(path)
    with pytest.raises(
        ConfigError,
        match=r"the size 3x32x48 \(channels, height, width\) and the others 3x64x64: set",
    ):
        federated(hospitals, tmp_path / "runs")
    federated(hospitals, tmp_path / "runs", **{"image-size": 32})


@pytest.fixture
def without_data(hospitals: list[Path]) -> list[Path]:
    """The hospitals, and a server that has only the names of the classes."""
    shutil.rmtree(hospitals[0] / "test")
    (hospitals[0] / "classes.txt").write_text("dog\nelephant\n")
    return hospitals


def test_a_server_with_only_the_names_of_the_classes_runs_to_its_end(
    without_data: list[Path], tmp_path: Path
) -> None:
    federated(without_data, tmp_path / "runs", **{"evaluate-every": 0, "batch-size": 4})
    (folder,) = (tmp_path / "runs").iterdir()
    (only,) = rounds_of(folder)
    assert (only["clients"], only["test_accuracy"]) == (2, None)
    model = fixbn_flwr.load(folder, "final")
    assert (model.class_names, model.input_size) == (("dog", "elephant"), (3, 64, 64))


def test_a_server_without_data_refuses_other_classes(
    without_data: list[Path], tmp_path: Path
) -> None:
    (without_data[2] / "train" / "dog").rename(without_data[2] / "train" / "wolf")
    with pytest.raises(ConfigError, match=r"client 1001 .* differ in dog, wolf: give every"):
        federated(without_data, tmp_path / "runs", **{"evaluate-every": 0})
    assert not (tmp_path / "runs").exists()


def test_a_server_without_data_refuses_images_of_different_sizes(
    without_data: list[Path], tmp_path: Path
) -> None:
    for path in without_data[2].rglob("*.jpg"):
        Image.open(path).resize((48, 32)).save(path)
    with pytest.raises(ConfigError, match=r"the size 3x32x48 .* and the others 3x64x64: set"):
        federated(without_data, tmp_path / "runs", **{"evaluate-every": 0})
    assert not (tmp_path / "runs").exists()


def test_a_server_without_data_refuses_a_model_for_another_size(
    without_data: list[Path], tmp_path: Path
) -> None:
    config = {"evaluate-every": 0, "model": "timm:test_vit", "image-size": 8, "batch-size": 4}
    with pytest.raises(ConfigError, match="does not take images of 8x8 pixels"):
        federated(without_data, tmp_path / "runs", **config)
    assert not (tmp_path / "runs").exists()


def test_a_run_without_test_images_is_refused(hospitals: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the data of task folder has no test images: add some"):
        federated([hospitals[1], *hospitals[1:]], tmp_path / "runs")
