"""The app's ServerApp: FixBN around FedAvg, with its results in a run folder."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fixbn_flwr.app.error_log import show_errors_alone
from fixbn_flwr.app.runs.momentum_files import folder_of, report
from fixbn_flwr.app.runs.summary import summary_table
from fixbn_flwr.app.runs.tracked import log_result, tracking_of
from fixbn_flwr.app.server.prepared_run import PreparedRun, prepare_run
from fixbn_flwr.app.server.reply_audit import audited
from fixbn_flwr.app.server.round_recorder import Recorder
from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.log import logger
from fixbn_flwr.tracking import Tracking


def server_app_of(recorder: type[Recorder]) -> ServerApp:
    """Return a ServerApp that runs a federation by its run config.

    The ServerApp raises a ``FixBNError`` if the run fails. Flower then reports it as failed.

    Args:
        recorder: Tests the model and records each round.
    """
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        show_errors_alone()
        run = prepare_run(grid, context)
        print(f"Run folder: {run.folder.path}")
        if run.rounds_done:
            print(f"Resuming after round {run.rounds_done}")
        with (
            run.folder.running(),
            audited(context.run_id),
            tracking_of(run.settings, run.folder, run.rounds_done) as tracking,
        ):
            arrays = train(run, recorder, tracking)
            run.folder.save_model("final", arrays_of(arrays))
            print(summary_table({run.settings.method: run.folder.finish()}))
            log_result(tracking, run.folder)
        if run.strategy.advice:
            print(f"Advice: {run.strategy.advice}")
        if state := folder_of(run.settings, run.folder.run):
            print(report(state))

    return made


def train(run: PreparedRun, recorder: type[Recorder], tracking: Tracking) -> ArrayRecord:
    """Run the rounds that are left, and return the whole model.

    If a round fails, the last round that has ended gets a checkpoint.

    Args:
        run: The prepared run.
        recorder: Tests the model and records each round.
        tracking: Logs every round.
    """
    if run.rounds_done == run.settings.num_server_rounds:
        return run.arrays
    recording = recorder(
        run.settings, run.task, run.test, run.grid, run.strategy, run.folder, tracking,
        run.rounds_done, run.best,
    )  # fmt: skip
    try:
        result = run.strategy.start(
            run.grid,
            run.arrays,
            num_rounds=run.settings.num_server_rounds,
            timeout=run.settings.round_timeout,
            evaluate_fn=recording,
            first_round=run.rounds_done + 1,
        )
    except BaseException:
        try:
            recording.close()
        except CheckpointError as error:
            logger.error("%s", error)
        raise
    recording.close()
    return result.arrays


app = server_app_of(Recorder)
