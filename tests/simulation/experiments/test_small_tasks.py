"""Small tasks: the same images at half the size, and networks that two cores can train."""

import pytest
import torch

from fixbn_flwr.tasks import get_task, load_splits
from simulation.experiments import small_tasks


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


def test_small_tiny_imagenet_has_all_its_images_at_32x32(shared_data):
    whole_train, whole_test = load_splits(get_task("tiny-imagenet"), shared_data)
    train, test = load_splits(small_tasks.TINY_IMAGENET, shared_data)

    assert tuple(train.images[:].shape) == (10000, 3, 32, 32)
    assert torch.equal(train.targets[:], whole_train.targets[:])
    assert torch.equal(test.targets[:], whole_test.targets[:])
    assert torch.equal(test.images[7:8], small_tasks.halve(whole_test.images[7:8]))


@pytest.mark.parametrize(
    ("build", "size", "convolutions", "parameters", "classes"),
    [(small_tasks.resnet8, 16, 7, 75_290, 10), (small_tasks.narrow_resnet18, 32, 17, 714_776, 200)],
)
def test_a_small_network_has_its_depth_and_parameters(
    build, size, convolutions, parameters, classes
):
    network = build()

    found = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(found) == convolutions
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network(torch.zeros(2, 3, size, size)).shape == (2, classes)
