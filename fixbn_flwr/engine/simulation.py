"""Run any Flower app on this machine, like ``flwr.simulation.run_simulation`` but without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fixbn_flwr.engine.fork_server import start_fork_server
from fixbn_flwr.engine.local_grid import LocalGrid
from fixbn_flwr.engine.simulated_grid import SimulatedGrid
from fixbn_flwr.errors import ConfigError


def run_simulation(
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    backend_name: str = "engine",
    backend_config: Mapping[str, Any] | None = None,
    enable_tf_gpu_growth: bool = False,
    verbose_logging: bool = False,
    *,
    workers: int | None = None,
    run_config: Mapping[str, Any] | None = None,
) -> Context:
    """Run a federation in worker processes of this machine.

    The signature is that of ``flwr.simulation.run_simulation``, so this is a drop-in replacement.

    Args:
        server_app: The ServerApp; it runs in this process.
        client_app: The ClientApp. It is pickled by ``cloudpickle``, so it may be defined in a
            script or a notebook.
        num_supernodes: The number of clients. Client i gets ``partition-id`` i in its node config.
        backend_name: Ignored: this is the backend.
        backend_config: As for Flower. Of its values, ``client_resources.num_cpus`` and
            ``init_args.num_cpus`` set the number of workers. The others are ignored. Each worker
            has one thread; a ClientApp may call ``torch.set_num_threads``.
        enable_tf_gpu_growth: Ignored.
        verbose_logging: Ignored.
        workers: The number of clients that train at a time. Default: ``init_args.num_cpus``, or all
            cores, divided by ``client_resources.num_cpus``, or 1.
        run_config: The run config of server and clients. Default: empty.

    Returns:
        The server's context, with what the ServerApp left in its state.

    Raises:
        ConfigError: If a number is not positive.
        WorkerError: If the worker processes cannot start.
    """
    for name, number in (("num_supernodes", num_supernodes), ("workers", workers)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}: use 1 or more.")
    return run_federation(
        server_app,
        lambda: client_app,
        num_supernodes,
        workers=workers or _workers_of(backend_config or {}),
        run_config=run_config or {},
    )


def run_federation(
    server_app: ServerApp,
    load_client_app: Callable[[], ClientApp],
    clients: int,
    *,
    workers: int | None,
    run_config: Mapping[str, Any],
) -> Context:
    """Run a ServerApp in this process, and its clients in workers; return the server's context.

    Args:
        server_app: The ServerApp.
        load_client_app: Returns the ClientApp; called in each worker.
        clients: The number of clients.
        workers: The number of clients that run at a time. None: one per core.
        run_config: The run config of server and clients.

    Raises:
        WorkerError: If the worker processes cannot start.
    """
    start_fork_server()
    with LocalGrid(
        load_client_app,
        clients,
        workers=workers,
        run_config=run_config,
    ) as grid:
        return run_server(server_app, grid, run_config)


def run_server(
    server_app: ServerApp, grid: SimulatedGrid, run_config: Mapping[str, Any]
) -> Context:
    """Run a ServerApp in this process on a Grid, and return its context."""
    context = Context(
        run_id=grid.run.run_id,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    server_app(grid, context)
    return context


def _workers_of(backend_config: Mapping[str, Any]) -> int | None:
    """Return the number of workers that Flower's config asks for; None if it does not say."""
    cores = (backend_config.get("init_args") or {}).get("num_cpus")
    per_client = (backend_config.get("client_resources") or {}).get("num_cpus")
    if cores is None and per_client is None:
        return None
    return max(1, int((cores or len(os.sched_getaffinity(0))) // (per_client or 1)))
