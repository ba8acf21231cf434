"""Variants of the app for real machines, with parts of it switched off.

Four parts shorten a round between real machines: packed arrays, quick polling, a worker that stays
alive, and momentum in files instead of Flower's context. Where a variant lacks a part, it does what
Flower does. `simulation.benchmarks.overhead_server` and `overhead_client` compose the variants from
the package's modules.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Parts:
    """The parts that a variant of the app has.

    Attributes:
        packed_arrays: Pack the arrays of a message into one array per dtype.
        quick_polling: Poll every 0.1 to 0.5 s on the server and every 0.2 s on the nodes, instead
            of every 3 s and 1 s.
        worker: Let one process per node answer all messages.
        momentum_files: Keep momentum in `state-dir` instead of Flower's context.
    """

    packed_arrays: bool = True
    quick_polling: bool = True
    worker: bool = True
    momentum_files: bool = True

    @property
    def server_app(self) -> str:
        """The reference to the server app; the package's own if it has both transport parts."""
        if self.packed_arrays and self.quick_polling:
            return "fixbn_flwr.app.server_app:app"
        name = "packed" if self.packed_arrays else "quick" if self.quick_polling else "neither"
        return f"simulation.benchmarks.overhead_server:{name}"

    @property
    def client_app(self) -> str:
        """The reference to the client app; the package's own if it has the worker."""
        if self.worker:
            return "fixbn_flwr.app.client_app:app"
        return "simulation.benchmarks.overhead_client:app"


def variants() -> dict[str, Parts]:
    """Return the app with all parts, without each of them, and without any, by name."""
    names = [field.name for field in fields(Parts)]
    without = {f"without {n.replace('_', ' ')}": replace(Parts(), **{n: False}) for n in names}
    return {"all parts": Parts(), **without, "no part": Parts(**dict.fromkeys(names, False))}
