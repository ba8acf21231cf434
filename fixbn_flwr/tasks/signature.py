"""What a trained model takes and returns: all that predictions need besides the network.

A run records it, so that its model can be used where the data set is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fixbn_flwr.tasks.task import Stored, Task


def names_of(task: Task) -> tuple[str, ...]:
    """Return the name of each class of a task; its number where the task names none."""
    return task.class_names or tuple(map(str, range(task.classes)))


@dataclass(frozen=True)
class Signature:
    """The images that a model takes, and the classes that it returns.

    Attributes:
        class_names: The name of each class.
        input_size: The channels, height and width of an image.
        mean: The mean of the training images, per channel, in units of the stored pixels.
        std: Their standard deviation, per channel, in the same units.
        white: The largest value of a stored pixel.
    """

    class_names: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: int

    @classmethod
    def of(cls, task: Task, images: Stored) -> Signature:
        """Return the signature of a task's models.

        Args:
            task: The task.
            images: Stored images of the task, at least one.

        Examples:
            >>> from fixbn_flwr.tasks import get_task, load_splits
            >>> digits = get_task("digits")
            >>> _, test = load_splits(digits)
            >>> Signature.of(digits, test.images).input_size
            (1, 8, 8)
        """
        first = images[:1]
        # A segmentation model sees windows of the images.
        height, width = first.shape[2:] if task.masks is None else task.masks.window_of(first)
        return cls.of_size(task, (first.shape[1], height, width))

    @classmethod
    def of_size(cls, task: Task, input_size: tuple[int, int, int]) -> Signature:
        """Return the signature of a task's models, without the data.

        Args:
            task: The task.
            input_size: The channels, height and width of an image.
        """
        return cls(
            class_names=names_of(task),
            input_size=input_size,
            mean=task.mean,
            std=task.std,
            white=task.white,
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Signature:
        """Return the signature whose `dataclasses.asdict` was written as JSON.

        Raises:
            KeyError: If a field is missing.
            TypeError: If the content is something else.
            ValueError: If a value has another type.
        """
        channels, height, width = map(int, fields["input_size"])
        return cls(
            class_names=tuple(map(str, fields["class_names"])),
            input_size=(channels, height, width),
            mean=tuple(map(float, fields["mean"])),
            std=tuple(map(float, fields["std"])),
            white=int(fields["white"]),
        )
