"""Real SuperNodes with folders of images of their own: a run, and a node with other classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fixbn_flwr
from tests.support.federations import Federation
from tests.support.image_trees import write_images
from tests.support.machines import switch_off

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(tmp_path: Path, shared_data: Path) -> Iterator[Federation]:
    federation = Federation(tmp_path, nodes=2)
    try:
        write_images(shared_data, federation.link.home / "data" / "test", "test", 0, 3, classes=2)
        for domain, name in enumerate(("north", "south")):
            node = federation.add(name, "0/1")
            data = node.machine.home / "data"
            write_images(shared_data, data / "train", "train", domain, 6, classes=2)
            (data / "test").mkdir()
            node.start()
        yield federation
    finally:
        switch_off(federation.machines)


def test_nodes_train_on_their_folders_and_a_node_with_other_classes_is_named(
    federation: Federation,
) -> None:
    config = {"task": "folder", "num_server_rounds": 2, "freeze_after": 1, "batch_size": 4}
    run = federation.start_run("run", **config)
    assert run.end() == 0, run.output
    assert [row["clients"] for row in federation.rounds("run")] == [2, 2]
    model = fixbn_flwr.load(federation.link.home / "run")
    assert model.class_names == ("dog", "elephant")

    train = federation.machines[2].home / "data" / "train"
    (train / "dog").rename(train / "wolf")
    refused = federation.start_run("refused", **config)
    refused.wait_for("they differ in dog, wolf: give every machine a classes.txt")
    refused.end()  # Flower returns 0 whether a run fails or not
    assert not (federation.link.home / "refused").exists()
