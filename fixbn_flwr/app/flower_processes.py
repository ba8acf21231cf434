"""What Flower's processes need on any machine: environment variables, and free ports.

The scripts of `deploy/` use it too, so it imports neither torch nor Flower.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path


def flower_environment(home: Path | None = None) -> dict[str, str]:
    """Return the environment of Flower's processes: they find each other, and report nothing.

    Args:
        home: Flower's home. Default: that of this process.
    """
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    silent = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    own_home = {"FLWR_HOME": str(home)} if home else {}
    return os.environ | {"PATH": programs, **silent, **own_home}


def free_port() -> int:
    """Return a port of the loopback interface that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
