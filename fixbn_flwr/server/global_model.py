"""The global model of a round, in the two parts that FixBN keeps apart.

The wrapped strategy works on the parameters; statistics and counters stay with FixBN. What travels,
and what a run returns, is the whole model in its own order.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, Message

from fixbn_flwr.array_records import arrays_of, record_of, view_of
from fixbn_flwr.method.averaging import Array, Arrays, Kind, first_spoilt, of_kind


class GlobalModel:
    """A model's arrays, as the server has them at the start of a round.

    Attributes:
        record: the whole model as it came.
        arrays: all of them, by name, in the model's order.
        parameters: the record that the wrapped strategy may see.
        rest: statistics and counters.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self.record = record
        self.arrays: dict[str, Array] = arrays_of(record)
        self.parameters = ArrayRecord(
            {name: record[name] for name in of_kind(self.arrays, Kind.PARAMETER)}
        )
        self.rest = of_kind(self.arrays, Kind.STATISTIC, Kind.COUNTER)

    def joined(self, parameters: ArrayRecord, rest: Arrays) -> ArrayRecord:
        """Join both parts to a whole model of the same order and types."""
        joined = record_of(rest)
        for name, own in self.arrays.items():
            if name not in rest:
                new = parameters[name]
                # Flower's FedAdam, for one, turns float32 into float64.
                joined[name] = (
                    new
                    if new.dtype == str(own.dtype)
                    else FlowerArray(np.asarray(new.numpy()).astype(own.dtype))
                )
        return ArrayRecord({name: joined[name] for name in self.arrays})

    def first_spoilt(self, record: ArrayRecord) -> str | None:
        """Return the first array of a new model that holds NaN or infinity where this has none."""
        return first_spoilt({name: view_of(array) for name, array in record.items()}, self.arrays)

    def put_into(self, messages: Iterable[Message]) -> None:
        """Put the whole model in place of the parameters in each message's content."""
        # Flower's strategies give all messages one content.
        for content in {id(message.content): message.content for message in messages}.values():
            for key, record in content.array_records.items():
                if record.keys() == self.parameters.keys():
                    content[key] = self.joined(record, self.rest)
