"""The server's half of the Flower app: FixBN around FedAvg, and a run folder with what came out."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fixbn_flwr.app.client_state import folder_of, report
from fixbn_flwr.app.config import Settings
from fixbn_flwr.app.federation import Federation
from fixbn_flwr.app.random_state import restore_random_state
from fixbn_flwr.app.recorder import RecordedFixBN, Recorder
from fixbn_flwr.app.resume import Earlier
from fixbn_flwr.app.run_folder import RunFolder
from fixbn_flwr.app.summary import summary_table
from fixbn_flwr.arrays import arrays_of
from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.server_state import logger
from fixbn_flwr.tasks import get_task, load_splits
from fixbn_flwr.training import find_device, seed_of
from fixbn_flwr.transport import flat_in_deployment

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
    federation = Federation(flat_in_deployment(grid))
    members = federation.assemble((earlier and earlier.clients) or settings.min_clients)
    settings.check_partitions(
        [member.examples for member in members], [member.name for member in members]
    )
    clients = len(members)
    federation.need(settings.clients_per_round(clients))
    folder = (
        earlier.open(clients, own_data=not any(member.partitions for member in members))
        if earlier
        else RunFolder.create(settings, method=settings.method, clients=clients, run=context.run_id)
    )
    print(f"Run folder: {folder.path}")

    strategy = RecordedFixBN(
        ReproducibleFedAvg(settings, clients),
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
        if settings.momentum == "local" and not settings.state_dir:
            logger.warning(
                "the clients' momentum ended with the run that was stopped, and starts from zero, "
                "but for nodes with a state-dir of their own: set state-dir to keep it in files"
            )
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


class ReproducibleFedAvg(FedAvg):
    """FedAvg whose sample of clients depends on seed and round alone; evaluates on the server."""

    def __init__(self, settings: Settings, clients: int) -> None:
        sample = settings.clients_per_round(clients)
        super().__init__(
            fraction_train=settings.fraction_train,
            fraction_evaluate=0.0,
            min_train_nodes=sample,
            min_available_nodes=sample,
        )
        self._seed = settings.seed

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample clients for a round."""
        random.seed(seed_of(self._seed, server_round))  # FedAvg draws from the global generator
        return super().configure_train(server_round, arrays, config, grid)
