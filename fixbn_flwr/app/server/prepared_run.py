"""Prepare a run, new or resumed, before its first round."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.initial_network import check_input, initial_network
from fixbn_flwr.app.runs.creation import create_run_folder
from fixbn_flwr.app.runs.momentum_files import folder_of, make_state_dir
from fixbn_flwr.app.runs.writer import RunFolder
from fixbn_flwr.app.server.client_registry_grid import ClientRegistryGrid
from fixbn_flwr.app.server.recorded_fixbn import RecordedFixBN
from fixbn_flwr.app.server.reproducible_fedavg import ReproducibleFedAvg
from fixbn_flwr.app.server.resumed_run import ResumedRun
from fixbn_flwr.app.server.rng_state import restore_random_state
from fixbn_flwr.app.workbench import find_device
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.tasks import Split, Task, check_not_empty, load_splits
from fixbn_flwr.tasks.signature import Signature, names_of
from fixbn_flwr.tracking.tracking import check_installed
from fixbn_flwr.transport.packed_grid import flat_in_deployment


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready for its next round.

    Attributes:
        settings: The validated run config.
        task: The data, model, loss and metric.
        test: The images that the server tests the model on; None if it tests none.
        grid: The run's clients.
        folder: The run folder.
        strategy: FixBN around FedAvg, restored if the run is resumed.
        arrays: The whole model.
        rounds_done: The number of rounds done; above 0 if the run is resumed.
        best: The best model so far, by name; None if no round was validated.
    """

    settings: Settings
    task: Task
    test: Split | None
    grid: ClientRegistryGrid
    folder: RunFolder
    strategy: RecordedFixBN
    arrays: ArrayRecord
    rounds_done: int = 0
    best: Arrays | None = None


def prepare_run(grid: Grid, context: Context) -> PreparedRun:
    """Load model and data, wait for the clients, and create or reopen the run folder.

    Raises:
        FixBNError: If the run cannot start. A new run has no folder then.
    """
    settings = Settings.from_run_config(context.run_config)
    resumed = ResumedRun.find(settings) if settings.resume else None
    settings = resumed.settings if resumed else settings
    find_device(settings.device)
    check_installed(settings.track)
    task = settings.read_task()
    model = initial_network(task, settings)  # fails before the data is loaded
    signature = None
    test = load_splits(task, settings.data_path)[1] if settings.evaluate_every else None
    if test is not None:
        check_not_empty(task, test, "test")
        signature = Signature.of(task, test.images)
        check_input(model, settings, signature)
    reached = flat_in_deployment(grid)
    simulated = reached is grid
    if simulated:
        make_state_dir(settings)
    tested_size = signature.input_size if signature else None
    registry = ClientRegistryGrid(reached, names_of(task), tested_size)
    clients, own_data, input_size = _assemble(registry, settings, task, resumed)
    if signature is None:
        signature = Signature.of_size(task, input_size)
        check_input(model, settings, signature)
    strategy = _strategy(settings, registry.needed)
    if resumed is None:
        folder = create_run_folder(
            settings,
            method=settings.method,
            clients=clients,
            signature=signature,
            own_data=own_data,
            run=context.run_id,
        )
        arrays = ArrayRecord(model.state_dict())
        return PreparedRun(settings, task, test, registry, folder, strategy, arrays)
    folder = resumed.open(clients, own_data=own_data)
    strategy.restore(resumed.checkpoint["strategy"])
    restore_random_state(resumed.checkpoint["random"])
    _warn_of_lost_momentum(settings, folder, simulated=simulated)
    return PreparedRun(
        settings, task, test, registry, folder, strategy,
        resumed.arrays, resumed.server_round, resumed.best,
    )  # fmt: skip


def _assemble(
    registry: ClientRegistryGrid, settings: Settings, task: Task, resumed: ResumedRun | None
) -> tuple[int, bool, tuple[int, int, int]]:
    """Wait for the clients, and set how many of them a round needs.

    Returns:
        The number of clients, whether they train on their own data, and the size of an image.
    """
    before = resumed and resumed.clients
    clients = registry.assemble(before or settings.min_clients, settings.min_clients)
    settings.check_partitions(
        [client.examples for client in clients], [client.name for client in clients]
    )
    own_data = not any(client.partitions for client in clients)
    if not own_data:
        _warn_of_unused_classes(settings, task.classes, len(clients))
    registry.needed = settings.clients_per_round(len(clients))
    if own_data:  # the others continue while a client is away
        registry.needed = min(registry.needed, settings.min_clients)
    return len(clients), own_data, clients[0].input_size


def _warn_of_unused_classes(settings: Settings, classes: int, clients: int) -> None:
    """Warn if some classes have no client, so that nobody trains on their images."""
    held = clients * settings.partition_classes
    if settings.partition == "classes" and held < classes:
        needed = -(-classes // settings.partition_classes)
        logger.warning(
            "%s clients with %s classes each hold at most %s of the %s classes: no client trains "
            "on the others. Use %s clients or more (`fixbn run --clients %s`, or num-supernodes=%s "
            "in `flwr run --federation-config`), a larger partition-classes, or another partition.",
            clients, settings.partition_classes, held, classes, needed, needed, needed,
        )  # fmt: skip


def _strategy(settings: Settings, needed: int) -> RecordedFixBN:
    return RecordedFixBN(
        ReproducibleFedAvg(settings, needed),
        freeze_after=settings.freeze_after,
        momentum=settings.momentum,
        statistics=settings.statistics,
        learning_rate_factor=settings.learning_rate_factor,
        guard=settings.guard,
        compare_gradients_every=settings.compare_gradients_every,
    )


def _warn_of_lost_momentum(settings: Settings, folder: RunFolder, *, simulated: bool) -> None:
    """Warn if the clients of a resumed run have lost their momentum."""
    if settings.momentum != "local":
        return
    if not settings.state_dir:
        logger.warning(
            "the clients' momentum was lost when the run stopped and starts from zero, except on "
            "nodes with their own state-dir. Set state-dir to keep it in files."
        )
    elif simulated and not folder_of(settings, folder.run):
        logger.warning(
            "%s has no momentum of this run: it starts from zero. Results will differ from an "
            "uninterrupted run. If the files are elsewhere, stop the run and set state-dir to "
            "their directory.",
            settings.state_dir,
        )
