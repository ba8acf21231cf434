"""What a report says about the clients' validations of the global model."""

from __future__ import annotations

from collections.abc import Sequence

from fixbn_flwr.app.report.charts import Chart
from fixbn_flwr.app.report.reported_run import ReportedRun
from fixbn_flwr.app.report.tables import Row, Table
from fixbn_flwr.app.runs.summary import best_round


def validation_charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Return the charts of the mean, the worst client, the spread and the loss."""
    score = " or ".join(dict.fromkeys(run.score for run in runs))
    return [
        Chart(f"mean validation {score} (%)", lambda m: m.validation_accuracy, 100.0),
        Chart(f"worst client's validation {score} (%)", lambda m: m.validation_worst, 100.0),
        Chart("spread between clients (points)", lambda m: m.validation_spread, 100.0),
        Chart("validation loss (nats)", lambda m: m.validation_loss),
    ]


def validation_table(run: ReportedRun) -> Table | None:
    """Return each client's score in the best and the last round, the worst client first.

    Returns:
        None if no client has validated the model.
    """
    best = best_round(run.rounds)
    if best is None:
        return None
    last = [m for m in run.rounds if m.validation_by_client][-1]
    shown = (best.validation_by_client, last.validation_by_client)
    clients = dict.fromkeys([*shown[0], *shown[1]])
    return Table(
        ["client", f"{run.score}, round {best.round} (best)", f"round {last.round} (last)"],
        [
            Row(client, [f"{of[client]:.1%}" if client in of else "–" for of in shown])
            for client in sorted(clients, key=lambda client: shown[0].get(client, 1.0))
        ],
    )
