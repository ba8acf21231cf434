"""The model of a run with the data set that it was trained on, where both are on this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.inference.loading import Which, default_model, load
from fixbn_flwr.app.report.reported_run import ReportedRun
from fixbn_flwr.app.training import evaluate
from fixbn_flwr.app.workbench import Workbench, find_device
from fixbn_flwr.tasks import Split, Task, load_splits
from fixbn_flwr.tasks.metrics import Metric


@dataclass(frozen=True)
class TestedModel:
    """A model and its data.

    Attributes:
        which: Whether it is the best or the final model.
        settings: The run config.
        task: The task.
        class_names: The name of each class.
        train: All training images.
        test: The test images.
    """

    which: Which
    settings: Settings
    task: Task
    class_names: tuple[str, ...]
    train: Split
    test: Split
    _bench: Workbench

    def evaluate(
        self, data: Split, indices: torch.Tensor | None = None, *, metric: Metric | None = None
    ) -> tuple[float, float]:
        """Return the mean loss and the metric, as the run computes them.

        Args:
            data: The images.
            indices: Which of them, int64 ``[n]``. Default: all.
            metric: What to compute. Default: the task's metric.
        """
        task = self.task if metric is None else replace(self.task, metric=lambda: metric)
        return evaluate(self._bench, task, data, indices)


def tested_model(run: ReportedRun) -> TestedModel:
    """Load the best model of a run, or the final one if it has no best, and its data.

    Raises:
        ConfigError: If the model, the task or the data set is not on this machine.
    """
    settings = run.settings()
    which = default_model(run.path)
    model = load(run.path, which)
    task = settings.read_task()
    train, test = load_splits(task, settings.data_path)
    device = find_device("auto")
    network = model.network.to(device).to(memory_format=torch.channels_last)
    bench = Workbench(network, device, momentum=0.0, weight_decay=0.0)
    return TestedModel(which, settings, task, model.class_names, train, test, bench)
