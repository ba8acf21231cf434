"""Segmentation: crops of images and masks, loss and score per pixel, training and evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fixbn_flwr.app.training import evaluate, train
from fixbn_flwr.app.workbench import Workbench
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tasks.image_files import ImageFiles
from fixbn_flwr.tasks.segmentation import IGNORED, Masks, mean_iou, pixel_cross_entropy

MASKS = Masks(crop=(16, 32), window=(16, 32), evaluation_batch=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(images: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return images whose two channels are row and column, and masks that are their sum."""
    rows = torch.arange(1, height + 1).view(1, height, 1).expand(images, height, width)
    columns = torch.arange(1, width + 1).view(1, 1, width).expand(images, height, width)
    return torch.stack([rows, columns], dim=1).float(), (rows + columns).to(torch.uint8)


def logits(classes: list[list[int]]) -> Tensor:
    """Return outputs `[1, 3, h, w]` that predict these classes with certainty."""
    return 100.0 * one_hot(torch.tensor([classes]), 3).permute(0, 3, 1, 2)


def test_crops_keep_every_pixel_with_its_class() -> None:
    images, masks = numbered(200, 24, 40)
    crops, cropped = MASKS.augment(images, masks, generator())
    assert crops.shape == (200, 2, 16, 32)
    assert cropped.dtype == torch.uint8
    assert torch.equal(cropped, crops.sum(1).to(torch.uint8))
    steps = crops[:, 1, 0, 1] - crops[:, 1, 0, 0]
    mirrored = steps == -1
    assert torch.equal(mirrored, steps != 1)
    assert 70 < int(mirrored.sum()) < 130
    tops, lefts = crops[:, 0, 0, 0], crops[:, 1].amin((1, 2))
    assert sorted(set(tops.tolist())) == list(range(1, 10))  # every offset, including the last one
    assert sorted(set(lefts.tolist())) == list(range(1, 10))


def test_a_crop_is_no_larger_than_the_image_rounded_up_to_a_multiple_of_16() -> None:
    images, masks = numbered(8, 10, 20)
    crops, cropped = Masks((512, 1024), (512, 1024), 1).augment(images, masks, generator())
    assert crops.shape == (8, 2, 16, 32)
    outside = cropped == IGNORED
    assert outside.sum((1, 2)).tolist() == [16 * 32 - 10 * 20] * 8
    assert torch.equal(outside, crops.sum(1) == 0)
    assert outside[:, 10:].all()  # below the image; its columns may be mirrored


def test_crops_depend_only_on_the_generator() -> None:
    images, masks = numbered(8, 24, 40)
    torch.manual_seed(1)
    first = MASKS.augment(images, masks, generator())
    torch.manual_seed(2)
    assert all(map(torch.equal, first, MASKS.augment(images, masks, generator())))
    assert not torch.equal(first[1], MASKS.augment(images, masks, generator(1))[1])


def test_windows_contain_every_pixel_once() -> None:
    images, masks = numbered(2, 20, 70)
    windows = list(MASKS.windows(images, masks))
    assert [window.shape for window, _ in windows] == [(2, 2, 16, 32)] * 6
    seen = torch.zeros(20, 70)
    for window, classes in windows:
        inside = classes != IGNORED
        assert torch.equal(inside, window.sum(1) > 0)
        assert torch.equal(classes[inside], window.sum(1)[inside].to(torch.uint8))
        rows, columns = window[0, 0][inside[0]].long(), window[0, 1][inside[0]].long()
        seen[rows - 1, columns - 1] += 1
    assert torch.equal(seen, torch.ones(20, 70))


def test_the_loss_is_the_mean_over_pixels_with_a_class() -> None:
    outputs = torch.zeros(1, 3, 1, 3)
    outputs[0, :, 0, 1] = torch.tensor([0.0, 1.0, 2.0])
    masks = torch.tensor([[[0, 2, IGNORED]]], dtype=torch.uint8)
    expected = (torch.log(torch.tensor(3.0)) - torch.log_softmax(outputs[0, :, 0, 1], 0)[2]) / 2
    torch.testing.assert_close(pixel_cross_entropy(outputs, masks), expected)


def test_the_loss_without_pixels_is_zero_and_has_a_zero_gradient() -> None:
    outputs = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_cross_entropy(outputs, torch.full((1, 2, 2), IGNORED, dtype=torch.uint8))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()


def test_mean_iou_of_a_small_example() -> None:
    metric = mean_iou(3)
    # Class 0: intersection 2, union 3. Class 1: 1 and 2. Class 2 does not occur.
    metric.update(
        logits([[0, 0, 1, 0, 2]]), torch.tensor([[[0, 0, 1, 1, IGNORED]]], dtype=torch.uint8)
    )
    assert metric.compute().item() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_mean_iou_counts_the_pixels_of_all_batches_together() -> None:
    metric = mean_iou(3)
    # Class 0 has 1 of 3, class 1 has 2 of 4. The mean over batches differs.
    metric.update(logits([[0, 1]]), torch.tensor([[[0, 0]]], dtype=torch.uint8))
    metric.update(logits([[1, 1, 0]]), torch.tensor([[[1, 1, 1]]], dtype=torch.uint8))
    assert metric.compute().item() == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_masks_of_many_classes_do_not_overflow_uint8() -> None:
    metric = mean_iou(19)
    masks = torch.arange(19, dtype=torch.uint8).view(1, 1, 19)
    metric.update(100.0 * one_hot(masks.long(), 19).permute(0, 3, 1, 2), masks)
    assert metric.compute().item() == pytest.approx(1)


class Threshold(nn.Module):
    """Predicts class 1 for pixels above the mean, else class 0, with logits of size `scale`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        score = self.scale * images[:, :1].sign()
        return torch.cat([-score, score], dim=1)


def toy_task() -> Task:
    return Task(
        name="toy",
        classes=2,
        load=lambda _: pytest.fail("not to be loaded"),
        models={"threshold": lambda _norm: Threshold()},
        mean=(100.0,),
        std=(50.0,),
        augment=None,
        loss=pixel_cross_entropy,
        metric=lambda: mean_iou(2),
        masks=MASKS,
    )


def toy_data() -> Split:
    random = generator(5)
    images = torch.randint(0, 256, (5, 1, 20, 40), generator=random, dtype=torch.uint8)
    masks = torch.randint(0, 2, (5, 20, 40), generator=random, dtype=torch.uint8)
    masks[:, 15:] = IGNORED
    masks[0] = IGNORED
    return Split(images, masks)


@pytest.mark.parametrize("window", [(32, 48), (16, 32), (16, 16)])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_evaluation_is_exact_for_windows_of_any_size(window: tuple[int, int], batch: int) -> None:
    data, model = toy_data(), Threshold()
    task = replace(toy_task(), masks=Masks((16, 32), window, batch))
    loss, score = evaluate(Workbench(model, torch.device("cpu"), 0.0, 0.0), task, data)

    counted = data.targets[:] != IGNORED
    guess = (data.images[:][:, 0] > 100)[counted].long()
    truth = data.targets[:][counted].long()
    right = torch.nn.functional.softplus(torch.tensor(-4.0))  # logits are 4 apart
    wrong = torch.nn.functional.softplus(torch.tensor(4.0))
    undecided = (data.images[:][:, 0] == 100)[counted]
    losses = torch.where(guess == truth, right, wrong).where(~undecided, torch.tensor(2.0).log())
    iou = [
        ((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in (0, 1)
    ]
    assert loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert score == pytest.approx(sum(iou).item() / 2, rel=1e-5)
    assert {shape[2:] for shape in model.shapes} == {window}
    assert max(shape[0] for shape in model.shapes) == min(batch, 5)


def test_evaluation_can_be_limited_to_some_images() -> None:
    bench, data, own = Workbench(Threshold(), torch.device("cpu"), 0.0, 0.0), toy_data(), [4, 1, 2]
    alone = Split(data.images[torch.tensor(own)], data.targets[torch.tensor(own)])
    expected = evaluate(bench, toy_task(), alone)
    assert evaluate(bench, toy_task(), data, torch.tensor(own)) == pytest.approx(expected)
    assert evaluate(bench, toy_task(), data) != pytest.approx(expected)


def test_training_crops_images_and_masks_at_the_same_position() -> None:
    images = torch.randint(0, 256, (4, 1, 40, 80), generator=generator(), dtype=torch.uint8)
    images[images == 100] = 0
    data = Split(images, (images[:, 0] > 100).to(torch.uint8))  # the model's predictions
    model = Threshold()
    bench = Workbench(model, torch.device("cpu"), 0.0, 0.0)
    loss = train(bench, toy_task(), data, iter([torch.tensor([0, 1, 3])]), generator())
    assert loss == pytest.approx(torch.nn.functional.softplus(torch.tensor(-4.0)).item(), rel=1e-4)
    assert model.shapes == [(3, 1, 16, 32)]


def test_files_are_read_on_access_in_the_requested_order() -> None:
    read: list[str] = []

    def number(path: Path) -> Tensor:
        read.append(path.name)
        return torch.tensor([[int(path.name)]], dtype=torch.uint8)

    files = ImageFiles([Path(str(name)) for name in range(9)], number)
    assert (len(files), read) == (9, [])
    assert files[torch.tensor([5, 0, 5])].flatten().tolist() == [5, 0, 5]
    assert files[slice(7, 20)].flatten().tolist() == [7, 8]
    assert sorted(read) == ["0", "5", "5", "7", "8"]


def test_only_images_with_classes_have_labels() -> None:
    assert Split(torch.zeros(2, 1), torch.tensor([4, 5])).labels.tolist() == [4, 5]
    assert toy_data().labels.shape == (5, 0)
    files = ImageFiles([Path("a")] * 3, lambda _: pytest.fail("not to be read"))
    assert Split(files, files).labels.shape == (3, 0)
