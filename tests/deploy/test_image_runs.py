"""Runs the Dockerfile's steps in a clean root and the image's services as its user, without Docker.

The root is an overlay in memory over this machine's files. It holds everything that the steps
write, and is removed with the test. The steps that install packages are skipped, since no test
downloads anything; the packages of the current environment replace them. This requires root and
Linux namespaces.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.dockerfile import instructions
from tests.support.machines import ROOT, free_port
from tests.support.waiting import TIMEOUT, shell_wait

pytestmark = pytest.mark.slow

DOWNLOADS = re.compile("pip install|apt-get|apt/lists")
CLEAN_ROOT = """
mount -t tmpfs none /mnt
mkdir /mnt/changes /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/changes,workdir=/mnt/work /mnt/root
mount --bind /dev /mnt/root/dev
mount -t proc proc /mnt/root/proc
mount -t tmpfs none /mnt/root/tmp
mkdir /mnt/root/checkout
mount --bind "$2" /mnt/root/checkout
chmod 1777 /mnt/root/tmp
mkdir -p "/mnt/root$3"   # in the directory for temporary files, or on a disk of its own
mount --bind "$3" "/mnt/root$3"
if test -d /mnt/root/root; then chmod 755 /mnt/root/root; fi   # this Python may be in there
exec chroot /mnt/root sh -euc "$1"
"""


def in_clean_root(script: str) -> str:
    """Run a shell script in the clean root; return its output. Its processes end with it."""
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    result = subprocess.run(
        [*command, "sh", "-euc", CLEAN_ROOT, "sh", script, str(ROOT), sys.prefix],
        env={"PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/bin"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    if "unshare failed" in result.stdout or "mount:" in result.stdout:
        pytest.skip(f"no clean root here: {result.stdout}")
    assert result.returncode == 0, result.stdout
    return result.stdout


def steps() -> list[str]:
    """Return the Dockerfile's steps as shell commands, without those of the image's user."""
    commands: list[str] = []
    for name, arguments in instructions():
        if name in ("ARG", "ENV"):
            commands += [f"export {word}" for word in arguments.split() if "=" in word]
        elif name == "WORKDIR":
            commands.append(f"mkdir -p {arguments} && cd {arguments}")
        elif name == "COPY" and "--from=build" not in arguments:
            *sources, target = (word for word in arguments.split() if not word.startswith("--"))
            copied = " ".join(f"/checkout/{source}" for source in sources)
            # COPY copies the contents of a folder.
            commands.append(
                f"mkdir -p {target} && cp -r {copied}{'/.' * (len(sources) == 1)} {target}"
            )
        elif name == "RUN":
            parts = [part for part in arguments.split("&&") if not DOWNLOADS.search(part)]
            commands.append(" && ".join(parts) or "true")
            if "-m venv" in arguments:
                commands.append(stand_in_packages())
    return commands


def stand_in_packages() -> str:
    """Return a command that adds the copied package and this environment's packages to the path."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    file = f"/opt/venv/lib/{version}/site-packages/stand-in.pth"
    return f"printf '/build\\n{sysconfig.get_path('purelib')}\\n' > {file}"


def as_user(command: str) -> str:
    """Return a command that runs another one as the image's user, with its home."""
    (user,) = (arguments for name, arguments in instructions() if name == "USER")
    within = f"setpriv --reuid {user} --regid {user} --clear-groups env HOME=/home/fixbn"
    return f"{within} sh -euc {shlex.quote(command)}"


def test_the_image_runs_a_superlink_and_a_supernode_as_an_unprivileged_user() -> None:
    port = free_port("127.0.0.1")
    (health,) = (arguments for name, arguments in instructions() if name == "HEALTHCHECK")
    healthy = " ".join(re.findall(r'"([^"]*)"', health))
    node = f"start-supernode --insecure --superlink 127.0.0.1:{port} --partition 0/1"
    output = in_clean_root(
        "\n".join(
            [
                *steps(),
                as_user("id -u; pwd; which python start-superlink; touch /opt/venv/x || true"),
                "stat -c '%a %U %n' /var/lib/fixbn /certificates /keys/hospital-a",
                as_user(f"exec start-superlink --insecure --port {port}")
                + " > superlink.log 2>&1 &",
                shell_wait(as_user(healthy), log="superlink.log"),
                "export FIXBN_HOME=/var/lib/fixbn/node",
                as_user(f"exec {node}") + " > node.log 2>&1 &",
                shell_wait(as_user(healthy), log="node.log"),
                shell_wait("grep 'SuperNode ID' node.log", log="node.log"),
                "cat superlink.log node.log",
                "python -c 'import fixbn_flwr; print(fixbn_flwr.__file__)'",
            ]
        )
    )
    assert "10001\n/var/lib/fixbn\n/opt/venv/bin/python\n/opt/deploy/start-superlink\n" in output
    assert "touch: cannot touch '/opt/venv/x': Permission denied" in output
    for directory in ("/var/lib/fixbn", "/certificates", "/keys/hospital-a"):
        assert f"700 fixbn {directory}\n" in output
    assert "SuperNode ID" in output, output
    assert output.endswith("/build/fixbn_flwr/__init__.py\n"), output


def test_the_clean_root_leaves_no_files() -> None:
    in_clean_root("useradd --uid 10001 fixbn && touch /opt/left-behind")
    assert not Path("/opt/left-behind").exists()
    assert "fixbn" not in Path("/etc/passwd").read_text()
