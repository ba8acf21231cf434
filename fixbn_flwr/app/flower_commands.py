"""Flower's own commands `flwr run`, `flwr ls` and `flwr stop`, for one SuperLink.

`flwr run` itself exits with 0 if the app fails, and its log ends early if the connection breaks.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.flower_connection import refuse_simulation
from fixbn_flwr.app.flower_processes import flower_environment
from fixbn_flwr.errors import SuperLinkError
from fixbn_flwr.flower_compat import get_flwr_home


@dataclass(frozen=True)
class RunStatus:
    """The state of a run on its SuperLink.

    Attributes:
        status: Flower's word, such as ``running`` or ``finished:failed``.
        details: Why it failed; mostly empty.
    """

    status: str
    details: str

    @property
    def failure(self) -> str | None:
        """Why the run did not complete; None if it did."""
        if self.status == "finished:completed":
            return None
        return self.details.removeprefix("Simulation failed with exception: ") or self.status


class FlowerCommands:
    """Runs Flower's commands.

    Args:
        superlink: The connection's name in Flower's config.toml. Default: its default connection.
        environment: The environment of the commands. Default: `flower_environment`.
    """

    def __init__(self, superlink: str = "", environment: Mapping[str, str] | None = None) -> None:
        self._name = superlink
        self._superlink = [superlink] if superlink else []
        self._environment = environment or flower_environment()

    def run(
        self,
        app: Path,
        run_config: Mapping[str, Value],
        federation: Mapping[str, Value],
        show: Callable[[str], None],
    ) -> str:
        """Run an app until its log ends, and return Flower's id of the run.

        Args:
            app: The directory with the app's pyproject.toml.
            run_config: The values that differ from that file's run config.
            federation: Flower's simulation settings, such as ``num-supernodes``; empty for real
                SuperNodes.
            show: Called with the ``flwr run`` command, then with each line of the run's log.

        Raises:
            SuperLinkError: If the run did not start.
        """
        command = ["flwr", "run", str(app), *self._superlink, "--stream"]
        if federation:
            command += ["--federation-config", _toml(federation)]
        if run_config:
            command += ["--run-config", _toml(run_config)]
        show(shlex.join(command))
        run_id, before = None, list[str]()
        with subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    show(line.rstrip("\n"))
                    if started := re.match(r"Successfully started run (\d+)", line):
                        run_id = started[1]
                    if run_id is None:
                        before.append(line)
            except BaseException:
                process.terminate()  # else it would go on showing the log
                raise
        if run_id is None:
            raise SuperLinkError("the run did not start:\n" + "".join(before).rstrip())
        return run_id

    def status(self, run_id: str) -> RunStatus:
        """Return the status of a run.

        Raises:
            SuperLinkError: If the SuperLink does not answer, or does not know the run.
        """
        (run,) = self._call("ls", *self._superlink, "--run-id", run_id)["runs"]
        return RunStatus(str(run["status"]), str(run["status-details"]))

    def refuse_simulation(self) -> None:
        """Refuse a connection for which these commands would start a simulation.

        Raises:
            SuperLinkError: If the connection is a local simulation.
        """
        home = Path(self._environment.get("FLWR_HOME") or get_flwr_home())
        refuse_simulation(home, self._name)

    def check(self) -> None:
        """Check that the SuperLink answers.

        Raises:
            SuperLinkError: If it does not.
        """
        self._call("ls", *self._superlink, "--limit", "1")

    def stop(self, run_id: str) -> None:
        """Stop a run.

        Raises:
            SuperLinkError: If the SuperLink does not answer, or the run has ended.
        """
        self._call("stop", run_id, *self._superlink)

    def _call(self, *words: str) -> dict[str, Any]:
        command = ["flwr", *words, "--format", "json"]
        result = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        try:  # errors, too, are JSON, and Flower exits with 0
            answer: dict[str, Any] = json.loads(result.stdout)
        except ValueError:
            answer = {"error-message": result.stdout + result.stderr}
        if not answer.get("success"):
            reason = str(answer.get("error-message")).strip().splitlines()[-1:]
            raise SuperLinkError(f"{shlex.join(command)}: {''.join(reason)}")
        return answer


def _toml(values: Mapping[str, Value]) -> str:
    """Return values as Flower's command line takes them: `key=value` with TOML values."""
    # TOML has no surrogate pairs, which JSON writes otherwise.
    return " ".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
    )
