"""The global model of a round, in the two parts that FixBN keeps apart.

The inner strategy works on the parameters. FixBN keeps statistics and counters. Messages and the
run's result hold the whole model, in its own order.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.common import Array as FlowerArray
from flwr.common import ArrayRecord, RecordDict

from fixbn_flwr.array_records import arrays_of, record_of, record_with, view_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.averaging import Array, Arrays, Kind, first_spoilt, of_kind


class GlobalModel:
    """A model's arrays, as the server has them at the start of a round.

    Attributes:
        record: The whole model as it came.
        arrays: All arrays by name, in the model's order.
        parameters: The record that the inner strategy may see.
        rest: Statistics and counters.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self.record = record
        self.arrays: dict[str, Array] = arrays_of(record)
        self.parameters = record_with(
            {name: record[name] for name in of_kind(self.arrays, Kind.PARAMETER)}
        )
        self.rest = of_kind(self.arrays, Kind.STATISTIC, Kind.COUNTER)

    def joined(self, parameters: ArrayRecord, rest: Arrays) -> ArrayRecord:
        """Return the whole model, in the same order and types, from new parts.

        Raises:
            ConfigError: If a parameter is missing.
        """
        missing = [n for n in self.arrays if n not in rest and n not in parameters]
        if missing:
            raise ConfigError(
                f"the strategy's new model has no {missing[0]!r} ({len(missing)} of "
                f"{len(self.arrays)} arrays are missing): aggregate_train must return all arrays "
                "that it was sent."
            )
        joined = dict(record_of(rest))
        for name, own in self.arrays.items():
            if name not in rest:
                new = parameters[name]
                # Some strategies, such as FedAdam, turn float32 into float64.
                joined[name] = (
                    new
                    if new.dtype == str(own.dtype)
                    else FlowerArray(np.asarray(new.numpy()).astype(own.dtype))
                )
        return record_with({name: joined[name] for name in self.arrays})

    def first_spoilt(self, record: ArrayRecord) -> str | None:
        """Return the first array of a new model that is not finite where this model is."""
        return first_spoilt({name: view_of(array) for name, array in record.items()}, self.arrays)

    def whole(self, record: ArrayRecord) -> ArrayRecord:
        """Return parameters with this model's statistics; any other record as it is."""
        if record is self.parameters:
            return self.record
        if record.keys() == self.parameters.keys():
            return self.joined(record, self.rest)
        return record

    def put_into(
        self, contents: Iterable[RecordDict], arrays_key: str, *, own_statistics: bool
    ) -> None:
        """Put this model's statistics into records of parameters, and into whole models.

        Args:
            contents: The contents of messages, changed in place.
            arrays_key: The key of the model's record. Other records stay as they are, unless there
                is none under this key.
            own_statistics: Whether whole models keep their own statistics.
        """
        for content in contents:
            records = content.array_records
            for key in [arrays_key] if arrays_key in records else list(records):
                record = records[key]
                if record is self.record:
                    continue
                if record.keys() == self.arrays.keys() and not own_statistics:
                    content[key] = self.joined(record, self.rest)
                else:
                    content[key] = self.whole(record)

    def check_statistics(self, expected: Arrays) -> None:
        """Check that nothing has changed the statistics since the last round.

        Args:
            expected: The statistics that the last round left; empty before any.

        Raises:
            ConfigError: If one differs.
        """
        for name, value in expected.items():
            if not np.array_equal(self.rest[name], value):
                raise ConfigError(
                    f"statistic {name!r} is not what FixBN made it in the last round: a strategy "
                    "around FixBN, such as one for differential privacy, changed it, or an own "
                    "start() went back to an earlier model. Put FixBN outermost: "
                    "FixBN(DifferentialPrivacy...(FedAvg(), ...), freeze_after=...). Let start() "
                    "keep its best model aside, and train on from the last one."
                )


def statistics_of(record: ArrayRecord) -> dict[str, Array]:
    """Return views of a whole model's statistics, by name."""
    return of_kind({name: view_of(array) for name, array in record.items()}, Kind.STATISTIC)
