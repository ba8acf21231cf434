"""A federation on this machine: a Flower Grid whose clients run in worker processes.

``run_simulation`` runs any Flower app. It has the signature of ``flwr.simulation.run_simulation``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixbn_flwr.engine.simulation import run_simulation

__all__ = ["run_simulation"]


def __getattr__(name: str) -> Any:
    # The fork server must start before anything heavy is imported.
    if name == "run_simulation":
        from fixbn_flwr.engine.simulation import run_simulation

        return run_simulation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
