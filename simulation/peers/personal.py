"""Clients that keep some arrays of the model to themselves, and the test of such models.

Each client has a model of its own: the server's arrays, with the client's own arrays in place of
some. It keeps its own arrays in `context.state`. In a reply, what it received takes their place, so
the server averages equal values; reported bytes include them.

The experiments' tables have the accuracy on a global test set: here the mean over the clients'
models. The methods were not made for it. What they were made for is the accuracy on the data of
each client. It is recorded, too, as the test images of each class weighted by the class's share of
the client's images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fixbn_flwr.app.client.image_client import FixBNClient
from fixbn_flwr.app.server.round_recorder import Recorder
from fixbn_flwr.app.training import evaluate
from fixbn_flwr.app.workbench import Workbench
from fixbn_flwr.array_records import arrays_of, record_of
from fixbn_flwr.errors import FixBNError
from fixbn_flwr.tasks import load_splits

OWN = "own-arrays"  # the record in a client's state
OWN_ACCURACY = "own-accuracy"
FILE = "own-accuracy.json"  # in the run folder


class PersonalClient(FixBNClient):
    """A client with arrays of its own. Subclasses say which."""

    def is_own(self, name: str) -> bool:
        """Return whether the array with this name in the state dict stays at the client."""
        raise NotImplementedError

    def train(self, received: RecordDict) -> RecordDict:
        """Train for a round; keep the client's own arrays."""
        reply = super().train(received)
        arrays = arrays_of(reply.array_records["arrays"])
        sent = arrays_of(received.array_records["arrays"])
        own = {name: array for name, array in arrays.items() if self.is_own(name)}
        self.context.state[OWN] = record_of(own)
        reply["arrays"] = record_of({**arrays, **{name: sent[name] for name in own}})
        return reply

    def evaluate(self, received: RecordDict) -> RecordDict:
        """Test the client's model on the test images, all and by the client's classes."""
        bench = self._bench(received)
        train, test = load_splits(self.task, self.settings.data_path)
        loss, accuracy = evaluate(bench, self.task, test)
        metrics = MetricRecord({"loss": loss, "accuracy": accuracy})
        if self.task.masks is None:
            held = np.bincount(train.labels[self.partition], minlength=self.task.classes)
            by_class = {
                c: evaluate(bench, self.task, test, torch.from_numpy(images))[1]
                for c in np.flatnonzero(held).tolist()
                if len(images := np.flatnonzero(test.labels == c))
            }
            shares = held[list(by_class)] / held[list(by_class)].sum()
            metrics[OWN_ACCURACY] = float(shares @ np.array(list(by_class.values())))
        return RecordDict({"metrics": metrics})

    def _bench(self, received: RecordDict) -> Workbench:
        bench = super()._bench(received)
        if OWN in self.context.state:
            bench.load({**bench.arrays(), **arrays_of(self.context.state.array_records[OWN])})
        return bench


class PersonalRecorder(Recorder):
    """Records the mean loss and accuracy over the clients' models."""

    def _evaluate(self, arrays: ArrayRecord) -> tuple[float, float]:
        content = RecordDict({"arrays": arrays, "config": ConfigRecord()})
        messages = [
            Message(content, dst_node_id=node, message_type="evaluate")
            for node in self._grid.get_node_ids()
        ]
        counted = self._grid.bytes_sent, self._grid.bytes_received
        replies = self._grid.send_and_receive(messages)
        # A real run would not test all clients' models, so these bytes are not its cost.
        self._grid.bytes_sent, self._grid.bytes_received = counted
        if failed := [reply.error.reason for reply in replies if reply.has_error()]:
            raise FixBNError(f"a client's model cannot be tested: {failed[0]}")
        metrics = [dict(reply.content.metric_records["metrics"]) for reply in replies]
        self._record_own(metrics)
        return _mean(metrics, "loss"), _mean(metrics, "accuracy")

    def _record_own(self, metrics: Sequence[Mapping[str, object]]) -> None:
        """Add the accuracy on the clients' own classes to the run folder's file."""
        if all(OWN_ACCURACY in client for client in metrics):
            own = [*read_own_accuracies(self._folder.path), _mean(metrics, OWN_ACCURACY)]
            (self._folder.path / FILE).write_text(json.dumps(own), encoding="utf-8")


def read_own_accuracies(folder: Path) -> list[float]:
    """Return the accuracy on the clients' own classes by evaluation; empty without a file."""
    file = folder / FILE
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []


def _mean(metrics: Sequence[Mapping[str, object]], name: str) -> float:
    return float(np.mean([float(str(client[name])) for client in metrics]))
