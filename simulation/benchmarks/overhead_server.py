"""Server apps without packed arrays, without quick polling, or without both.

Each is the package's server app with another Grid; see `simulation.benchmarks.round_overhead`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import HttpGrid

from fixbn_flwr.app import server_app
from fixbn_flwr.transport.bounded_grid import BoundedGrid
from fixbn_flwr.transport.delegating_grid import DelegatingGrid
from fixbn_flwr.transport.packed_grid import PackedGrid


class SlowlyPolledGrid(PackedGrid):
    """A Grid that packs arrays and polls every 3 seconds, as Flower does."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """See ``Grid.send_and_receive``."""
        return list(HttpGrid.send_and_receive(cast(HttpGrid, self), messages, timeout=timeout))


class UnpackedGrid(PackedGrid):
    """A Grid that polls quickly and sends each array by itself, as Flower does."""

    push_messages = DelegatingGrid.push_messages
    pull_messages = DelegatingGrid.pull_messages


def _app_with(replace: Callable[[HttpGrid], Grid]) -> ServerApp:
    """Return the package's server app with a Grid that it does not wrap any further."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        server_app.app(replace(cast(HttpGrid, grid)), context)

    return app


packed = _app_with(lambda grid: SlowlyPolledGrid(BoundedGrid(grid)))
quick = _app_with(lambda grid: UnpackedGrid(BoundedGrid(grid)))
neither = _app_with(DelegatingGrid)
