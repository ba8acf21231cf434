"""What every Grid of simulated clients shares."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fixbn_flwr.flower_compat import Run, set_task_identity

FIRST_NODE_ID = 1000


class SimulatedGrid(Grid):
    """A Grid of simulated clients; subclasses run them. Use one at a time.

    Flower's identity of this process is set for the whole process.

    Args:
        nodes: The number of nodes. Node ``FIRST_NODE_ID + i`` holds partition ``i``.
        run_id: Flower's id of the run.
    """

    def __init__(self, nodes: int, run_id: int) -> None:
        set_task_identity(run_id)
        self._nodes = nodes
        self._run = Run.create_empty(run_id)

    def set_run(self, run: Run) -> None:
        """See ``Grid.set_run``."""
        self._run = run

    @property
    def run(self) -> Run:
        """See ``Grid.run``."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See ``Grid.create_message``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid.get_node_ids``."""
        return list(range(FIRST_NODE_ID, FIRST_NODE_ID + self._nodes))

    def _config_of(self, node_id: int) -> dict[str, int]:
        """Return a node's config: its partition and the number of partitions."""
        return {"partition-id": node_id - FIRST_NODE_ID, "num-partitions": self._nodes}
