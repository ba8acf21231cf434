"""One SuperLink for all real federations; each run on it is a `flwr run` with Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.app.local_superlink import SuperLink, local_superlink
from tests.support.pages import ROOT as APP
from tests.support.real_runs import Outcome, Simulate
from tests.support.whole_app import SMALL


@pytest.fixture(scope="session")
def link() -> Iterator[SuperLink]:
    with local_superlink() as link:
        yield link


@pytest.fixture(scope="session")
def simulate(link: SuperLink, tmp_path_factory: pytest.TempPathFactory) -> Simulate:
    """Run the app with whole_app's SMALL, updated by a run config."""

    def simulate(run_config: dict[str, Any], *, clients: int = 4, workers: int = 1) -> Outcome:
        folder: Path = tmp_path_factory.mktemp("runs") / "run"
        output = {"output-dir": str(folder.parent), "run-name": folder.name}
        federation = {
            "num-supernodes": clients,
            "client-resources-num-cpus": 1,
            "init-args-num-cpus": workers,
        }
        lines: list[str] = []
        failure = link.run(APP, SMALL | output | run_config, federation, lines.append)
        return Outcome(failure, "\n".join(lines), folder)

    return simulate
