"""Run a federation with FixBN, then with plain BN, and compare them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.overrides import variant
from fixbn_flwr.app.runs.figure import draw_curves, figure_title
from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.app.runs.summary import freeze_round_of, summarize, summary_table
from fixbn_flwr.errors import ConfigError

JUDGED = 10  # rounds after T* below which a comparison says nothing


def beside_bn(fixbn: Settings) -> tuple[Settings, Settings]:
    """Return the run configs of FixBN and of plain BN.

    Raises:
        ConfigError: If the run config is not one of FixBN.
    """
    if fixbn.method != "FixBN":
        raise ConfigError(
            f"the method of these settings is {fixbn.method}, not FixBN: compare needs norm=bn and "
            "a freeze-after before the last round."
        )
    return fixbn, variant(fixbn, {"freeze-after": 1.0, "run-name": f"{fixbn.run_name}-beside-BN"})


def compare_with_bn(
    both: tuple[Settings, Settings], clients: int, federate: Callable[[Settings], Path]
) -> None:
    """Run both, and print and draw the comparison.

    Args:
        both: The run configs of ``beside_bn``.
        clients: The number of clients.
        federate: Runs a federation and returns its run folder.
    """
    fixbn, _ = both
    folders = {settings.method: federate(settings) for settings in both}
    runs = {method: read_metrics(folder) for method, folder in folders.items()}
    freeze_round = freeze_round_of(runs["FixBN"])
    summaries = {method: summarize(metrics, freeze_round) for method, metrics in runs.items()}
    figure = folders["FixBN"] / "beside-BN.png"
    draw_curves(runs, freeze_round, figure, title=figure_title(fixbn, clients))
    print(f"\nFixBN beside plain BN, the same config and seed:\n{summary_table(summaries)}")
    print(f"Figure: {figure}")
    if freeze_round is None:
        print("The run decided never to freeze the statistics: both runs are plain BN.")
        return
    calibration = fixbn.num_server_rounds - freeze_round
    if calibration < JUDGED:
        print(
            f"Too short to judge: {calibration} rounds after T*, in which FixBN has a smaller "
            f"learning rate. Use {JUDGED} or more."
        )
