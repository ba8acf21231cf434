"""The server's half of the Flower app: FixBN around FedAvg, and a run folder with what came out."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.momentum_files import check_place, folder_of, report
from fixbn_flwr.app.runs.summary import summary_table
from fixbn_flwr.app.runs.writer import RunFolder
from fixbn_flwr.app.server.client_registry_grid import Federation
from fixbn_flwr.app.server.resumed_run import Earlier
from fixbn_flwr.app.server.rng_state import restore_random_state
from fixbn_flwr.app.server.round_recorder import RecordedFixBN, Recorder
from fixbn_flwr.app.training import find_device, seed_of
from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.method.server_rules import logger
from fixbn_flwr.tasks import get_task, load_splits
from fixbn_flwr.transport.packed_grid import flat_in_deployment

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation by its run config.

    Raises:
        FixBNError: what is wrong and what to do about it; Flower then reports the run as failed.
    """
    settings = Settings.from_run_config(context.run_config)
    earlier = Earlier.find(settings) if settings.resume else None
    settings = earlier.settings if earlier else settings
    find_device(settings.device)  # of the evaluation
    task = get_task(settings.task)
    torch.manual_seed(settings.seed)
    model = task.models[settings.model](settings.norm)  # fails first where there is no such model
    _, test = load_splits(task, settings.data_path)
    reached = flat_in_deployment(grid)
    simulated = reached is grid
    if simulated:
        check_place(settings)
    federation = Federation(reached)
    members = federation.assemble((earlier and earlier.clients) or settings.min_clients)
    settings.check_partitions(
        [member.examples for member in members], [member.name for member in members]
    )
    clients = len(members)
    own_data = not any(member.partitions for member in members)
    needed = settings.clients_per_round(clients)
    if own_data:  # whoever is away for a while does not keep the others from going on
        needed = min(needed, settings.min_clients)
    federation.need(needed)
    folder = (
        earlier.open(clients, own_data=own_data)
        if earlier
        else RunFolder.create(settings, method=settings.method, clients=clients, run=context.run_id)
    )
    print(f"Run folder: {folder.path}")

    strategy = RecordedFixBN(
        ReproducibleFedAvg(settings, needed),
        freeze_after=settings.freeze_after,
        momentum=settings.momentum,
        statistics=settings.statistics,
        learning_rate_factor=settings.learning_rate_factor,
    )
    done, best, arrays = 0, None, ArrayRecord(model.state_dict())
    if earlier:
        done, best, arrays = earlier.server_round, earlier.best, earlier.arrays
        strategy.restore(earlier.checkpoint["strategy"])
        restore_random_state(earlier.checkpoint["random"])
        print(f"Going on after round {done}")
        _warn_of_lost_momentum(settings, folder, clients_are_here=simulated)
    recorder = Recorder(settings, task, test, federation, strategy, folder, done, best)
    if done < settings.num_server_rounds:
        try:
            result = strategy.start(
                federation,
                arrays,
                num_rounds=settings.num_server_rounds,
                timeout=settings.round_timeout,
                evaluate_fn=recorder,
                first_round=done + 1,
            )
        except BaseException:
            try:
                recorder.save_checkpoint()  # of the last round that has ended, whatever came then
            except CheckpointError as error:
                logger.error("%s", error)
            raise
        arrays = result.arrays
    folder.save_model("final", arrays_of(arrays))
    print(summary_table({settings.method: folder.finish()}))
    if state := folder_of(settings, folder.run):
        print(report(state))
    print(f"Run folder: {folder.path}")


def _warn_of_lost_momentum(
    settings: Settings, folder: RunFolder, *, clients_are_here: bool
) -> None:
    """Say of a resumed run when its clients cannot go on with the momentum that they had."""
    if settings.momentum != "local":
        return
    if not settings.state_dir:
        logger.warning(
            "the clients' momentum ended with the run that was stopped, and starts from zero, "
            "but for nodes with a state-dir of their own: set state-dir to keep it in files"
        )
    elif clients_are_here and not folder_of(settings, folder.run):
        logger.warning(
            "%s holds nothing of this run: the clients' momentum starts from zero, and what "
            "follows is not what would have followed. If it lies elsewhere, stop, and name that "
            "as state-dir.",
            settings.state_dir,
        )


class ReproducibleFedAvg(FedAvg):
    """FedAvg whose sample of clients depends on seed and round alone; evaluates on the server.

    Args:
        settings: the run config.
        needed: how many clients a round needs at least.
    """

    def __init__(self, settings: Settings, needed: int) -> None:
        super().__init__(
            fraction_train=settings.fraction_train,
            fraction_evaluate=0.0,
            min_train_nodes=needed,
            min_available_nodes=needed,
        )
        self._settings = settings
        self._needed = needed

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample clients for a round, their share of those that are connected."""
        share = self._settings.clients_per_round(len(list(grid.get_node_ids())))
        self.min_train_nodes = max(self._needed, share)  # rounded, where FedAvg cuts off
        # FedAvg draws from the global generator.
        random.seed(seed_of(self._settings.seed, server_round))
        return super().configure_train(server_round, arrays, config, grid)
