"""Held-out tasks never use a test image, or an image that is trained on; and small tasks."""

import pytest
import torch

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import Split, get_task, load_splits
from simulation.experiments import small_tasks
from simulation.experiments.held_out_task import choose


class Stored:
    """Images that are read on access."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, indices):
        return self.values[indices]


def test_every_fifth_training_image_of_digits_is_held_out():
    train, test = load_splits(get_task("digits"))
    rest, held_out = load_splits(get_task("simulation.experiments.held_out_task:digits"))

    assert torch.equal(held_out.images[:], train.images[::5])
    assert torch.equal(held_out.targets[:], train.targets[::5])
    assert len(rest) + len(held_out) == len(train)
    assert torch.equal(rest.images[:4], train.images[1:5])
    assert len(test) != len(held_out)


def test_at_most_2000_of_cifar10_are_held_out(shared_data):
    rest, held_out = load_splits(
        get_task("simulation.experiments.held_out_task:cifar10"), shared_data
    )

    assert (len(rest), len(held_out)) == (48000, 2000)


def test_a_held_out_task_is_always_the_same_object():
    task = get_task(
        "simulation.experiments.held_out_task:simulation.experiments.small_tasks:CIFAR10"
    )

    assert task is get_task(
        "simulation.experiments.held_out_task:simulation.experiments.small_tasks:CIFAR10"
    )
    assert task.name == "cifar10-small-held-out"
    assert list(task.models) == ["resnet8", "resnet20"]


def test_an_unknown_task_is_an_error():
    with pytest.raises(ConfigError, match="'nothing', which does not exist"):
        get_task("simulation.experiments.held_out_task:nothing")


def test_images_in_files_are_selected_without_reading_them():
    stored, groups = Stored(torch.arange(10.0)), torch.arange(10)
    chosen = choose(Split(stored, Stored(torch.arange(10)), groups), torch.tensor([7, 3, 5]))

    assert not isinstance(chosen.images, torch.Tensor)
    assert chosen.images[torch.tensor([2, 0])].tolist() == [5.0, 7.0]
    assert chosen.targets[:2].tolist() == [7, 3]
    assert chosen.groups is not None
    assert chosen.groups.tolist() == [7, 3, 5]


def test_halving_takes_the_mean_of_four_pixels_rounded():
    images = torch.tensor([[[[0, 1], [2, 4]]], [[[255, 255], [255, 254]]]], dtype=torch.uint8)

    assert small_tasks.halve(images).tolist() == [[[[2]]], [[[255]]]]


def test_small_cifar10_is_cifar10_at_16x16(shared_data):
    whole = load_splits(get_task("cifar10"), shared_data)
    train, test = load_splits(small_tasks.CIFAR10, shared_data)

    assert tuple(train.images[:].shape) == (50000, 3, 16, 16)
    assert (len(test), train.images[:].dtype) == (2000, torch.uint8)
    assert torch.equal(train.targets[:], whole[0].targets[:])
    assert torch.equal(test.targets[:], whole[1].targets[:2000])
    assert torch.equal(test.images[5:6], small_tasks.halve(whole[1].images[5:6]))


def test_small_camvid_keeps_masks_beside_their_images(shared_data):
    whole_train, whole_test = load_splits(get_task("camvid"), shared_data)
    train, test = load_splits(small_tasks.CAMVID, shared_data)

    assert tuple(train.images[:].shape) == (367, 3, 90, 120)
    assert len(test) == 78
    assert torch.equal(test.targets[1:2], whole_test.targets[3:4][:, ::2, ::2])
    assert train.groups is not None
    assert whole_train.groups is not None
    assert torch.equal(train.groups, whole_train.groups)


def test_resnet8_has_7_convolutions_and_75290_parameters():
    network = small_tasks.resnet8()

    assert sum(parameter.numel() for parameter in network.parameters()) == 75290
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
