"""A wrapped grid answers as the grid inside."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.proto.node_pb2 import NodeInfo
from flwr.superlink.grid import HttpGrid

from fixbn_flwr.transport.bounded_grid import BoundedGrid
from fixbn_flwr.transport.packed_grid import PackedGrid


class Connected(HttpGrid):
    """Flower's grid with one connected node."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=5, owner_name="clinic")]


def test_nodes_keep_what_flower_knows_of_them() -> None:
    grid = PackedGrid(BoundedGrid(Connected(token="any")))
    assert [(node.node_id, node.owner_name) for node in grid.get_nodes()] == [(5, "clinic")]
