"""A private SuperLink for simulations on this machine, for the duration of a ``with`` block.

By default, `flwr run` starts a SuperLink that stays alive, with the environment, packages and
working directory of the first run, and it exits with 0 if the app fails. This SuperLink has its own
home, port and working directory, ends with the block, and reports how each run ended.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.flower_commands import FlowerCommands
from fixbn_flwr.app.flower_processes import flower_environment, free_port
from fixbn_flwr.app.process_cleanup import end_processes, start_guard
from fixbn_flwr.errors import SuperLinkError

_START = 60.0  # seconds for the SuperLink to answer
_NAME = "simulation"


@contextmanager
def local_superlink() -> Iterator[SuperLink]:
    """Start a SuperLink with its own home; stop it and all its processes afterwards.

    Raises:
        SuperLinkError: If it does not start. The message ends with its log.
    """
    with tempfile.TemporaryDirectory(prefix="fixbn-", ignore_cleanup_errors=True) as home:
        link = SuperLink(Path(home), free_port())
        link.start()
        try:
            yield link
        finally:
            link.stop()


class SuperLink:
    """A SuperLink on this machine; see :func:`local_superlink`."""

    def __init__(self, home: Path, port: int) -> None:
        self._home = home
        self._port = port
        self._log = home / "superlink.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._environment = flower_environment(home) | {
            # Show every client's lines, not "repeated 9x across cluster".
            "RAY_DEDUP_LOGS": "0",
            # Start a Ray cluster even if another one is running.
            "RAY_ADDRESS": "local",
            # Silence Ray's notice about a default that will change; nothing depends on it.
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }

    def start(self) -> None:
        """Start the process and wait until it responds."""
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_NAME}"\n\n'
            f'[superlink.{_NAME}]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )
        command = [
            "flower-superlink",
            "--insecure",
            "--simulation",
            "--isolation=subprocess",
            "--host=127.0.0.1",
            f"--port={self._port}",
            # The current environment has all that the app needs.
            "--disable-runtime-dependency-installation",
        ]
        self._guard = start_guard(self._home)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._home,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + _START
        while not self._responds():
            if self._process.poll() is not None or time.monotonic() > end:
                output = self._log.read_text()
                self.stop()  # removes the home
                raise SuperLinkError(f"the SuperLink did not start:\n{output}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the SuperLink and every process that it started."""
        if self._process is None:
            return
        self._process.terminate()
        end_processes(self._home)
        self._process.kill()
        self._process.wait()
        self._process = None
        if self._guard is not None:
            self._guard.communicate()  # closes its stdin

    def run(
        self,
        app: Path,
        run_config: Mapping[str, Value],
        federation: Mapping[str, Value],
        show: Callable[[str], None],
    ) -> str | None:
        """Run an app and wait for it to end.

        Args:
            app: The directory with the app's pyproject.toml.
            run_config: The values that differ from that file's run config.
            federation: Flower's simulation settings, such as ``num-supernodes``; empty for real
                SuperNodes.
            show: Called with the ``flwr run`` command, then with each line of the run's log.

        Returns:
            None if the run completed, else the reason of its failure.

        Raises:
            SuperLinkError: If the run did not start.
        """
        commands = FlowerCommands(_NAME, self._environment)
        run_id = commands.run(app, run_config, federation, show)
        try:
            return commands.status(run_id).failure
        except SuperLinkError as error:
            return f"the SuperLink has stopped: {error}\n{self._log.read_text()}"

    def _responds(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=1):
                return True
        except OSError:
            return False
