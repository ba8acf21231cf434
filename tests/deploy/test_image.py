"""Checks Dockerfile and compose file without Docker: good practice, and that all paths exist.

The rules are hadolint's (https://github.com/hadolint/hadolint), as far as they apply here.
test_compose.py runs the commands of the services.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dockerfile import Instruction, instructions
from tests.support.machines import ROOT


def of(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


def last_stage() -> list[Instruction]:
    stages = [place for place, (name, _) in enumerate(instructions()) if name == "FROM"]
    return instructions()[stages[-1] :]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return loaded


SERVICES: dict[str, dict[str, Any]] = compose()["services"]
SCRIPTS = {p.name for p in (ROOT / "deploy").iterdir() if p.is_file() and not p.suffix}


def test_every_stage_begins_with_the_same_pinned_base() -> None:
    (python,) = (a.partition("=")[2] for a in of("ARG") if a.startswith("PYTHON="))
    assert re.fullmatch(r"3\.\d+\.\d+-slim-[a-z]+", python)  # DL3006, DL3007
    assert [line.split()[0] for line in of("FROM")] == ["python:${PYTHON}"] * 2
    assert "latest" not in (ROOT / "Dockerfile").read_text()


def test_build_tools_are_pinned_and_leave_no_cache() -> None:
    for line in of("RUN"):
        for command in line.split("&&"):
            words = shlex.split(command)
            if "install" in words and ("pip" in words):
                cache = "--no-cache" if words[0] == "uv" else "--no-cache-dir"  # DL3042
                assert cache in words
            if words[:3] == ["python", "-m", "pip"]:
                assert all(
                    re.search("[<=]", word) for word in words if word.startswith("uv")
                )  # DL3013
        assert "sudo" not in line  # DL3004
        assert not line.startswith("cd ")  # DL3003
        if "apt-get install" in line:
            assert "--no-install-recommends" in line  # DL3015
            assert "--yes" in line  # DL3014
            first, *_, last = (part.strip() for part in line.split("&&"))
            assert (first, last) == ("apt-get update", "rm -rf /var/lib/apt/lists/*")  # DL3009


def test_the_last_stage_runs_as_an_unprivileged_user_with_a_health_check() -> None:
    names = [name for name, _ in last_stage()]
    users = [arguments for name, arguments in last_stage() if name == "USER"]
    assert users == ["10001"]  # DL3002; a number, as Kubernetes requires
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")
    assert names.count("HEALTHCHECK") == names.count("CMD") == 1
    assert names.index("USER") < names.index("CMD")
    for directory in of("WORKDIR"):
        assert directory.startswith("/")  # DL3000


def test_the_image_contains_no_secrets_and_no_unneeded_files() -> None:
    assert not of("ADD")  # DL3020
    admitted = (ROOT / ".dockerignore").read_text().splitlines()
    assert admitted[0] == "*"
    in_context = {line.removeprefix("!") for line in admitted if line.startswith("!")}
    for arguments in of("COPY"):
        words = arguments.split()
        options = [word for word in words if word.startswith("--")]
        if "--from=build" in options:
            continue
        *sources, _ = (word for word in words if word not in options)
        assert set(sources) <= in_context
        for source in sources:
            assert (ROOT / source).exists(), source


def test_the_image_is_installed_like_the_project() -> None:
    (install,) = (line for line in of("RUN") if "uv pip install" in line)
    assert '--torch-backend "${TORCH_BACKEND}"' in install
    assert "TORCH_BACKEND=cpu" in of("ARG")
    assert "uv>=0.12.20,<0.13" in " ".join(of("RUN"))
    assert "'uv>=0.12.20,<0.13'" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("instruction", ["HEALTHCHECK", "CMD"])
def test_the_programs_of_the_image_exist(instruction: str) -> None:
    arguments = dict(last_stage())[instruction]
    program = yaml.safe_load(arguments[arguments.index("[") :])[0]  # DL3025: JSON
    assert program in SCRIPTS
    (path,) = (line for line in of("ENV") if line.startswith("PATH="))
    assert path.startswith("PATH=/opt/deploy:/opt/venv/bin:$PATH")
    assert any(line.endswith("deploy /opt/deploy") for line in of("COPY"))


def programs(command: list[str]) -> set[str]:
    """Return the scripts of deploy/ that a service's command runs."""
    if command[0] == "sh":
        return {word for word in re.findall(r"[\w-]+", command[-1]) if word in SCRIPTS}
    return {command[0]}


def test_the_scripts_of_the_services_exist() -> None:
    assert {name: programs(service["command"]) for name, service in SERVICES.items()} == {
        "secrets": {"make-certificates", "make-node-key"},
        "superlink": {"start-superlink"},
        "gateway": {"start-gateway"},
        "run": set(),
        "register": {"register"},
        "hospital-a": {"start-supernode"},
        "hospital-b": {"start-supernode"},
    }
    assert set().union(*(programs(s["command"]) for s in SERVICES.values())) <= SCRIPTS
    context = ROOT / "deploy" / SERVICES["secrets"]["build"]["context"]
    assert (context / "Dockerfile").is_file()


def test_every_path_of_a_command_is_in_a_volume_and_every_volume_is_declared() -> None:
    (directories,) = (line for line in of("RUN") if "install --directory" in line)
    named = set()
    for name, service in SERVICES.items():
        volumes = (v.split(":") for v in service["volumes"] if v != "..:/app:ro")
        mounts = {mount: volume for volume, mount, *_ in volumes}
        named |= set(mounts.values())
        assert all(mount in directories.split() for mount in mounts), name
        for path in re.findall(r"/(?:certificates|keys)[\w/-]*", " ".join(service["command"])):
            assert any(f"{path}/".startswith(f"{mount}/") or path == "/keys/" for mount in mounts)
    assert named == set(compose()["volumes"])


def test_only_services_that_need_keys_mount_them() -> None:
    def volumes(service: str) -> set[str]:
        return {v.partition(":")[0] for v in SERVICES[service]["volumes"]}

    assert volumes("superlink") == {"certificates", "superlink", "runs"}
    assert volumes("gateway") == {"certificates", "gateway"}
    assert volumes("hospital-a") == {"hospital-a-keys", "hospital-a"}
    assert volumes("hospital-b") == {"hospital-b-keys", "hospital-b"}
    for name, service in SERVICES.items():
        for volume in service["volumes"]:
            read_only = volume.startswith(("certificates", "..")) or "-keys" in volume
            assert volume.endswith(":ro") == (read_only and name != "secrets"), (name, volume)


def test_a_service_starts_after_the_services_that_it_needs() -> None:
    def needs(service: str) -> dict[str, str]:
        return {k: v["condition"] for k, v in SERVICES[service].get("depends_on", {}).items()}

    assert needs("secrets") == {}
    assert needs("superlink") == {"secrets": "service_completed_successfully"}
    assert needs("gateway") == {"superlink": "service_healthy"}
    assert needs("register") == {"gateway": "service_healthy"}
    for node in ("hospital-a", "hospital-b"):
        assert needs(node) == {"register": "service_completed_successfully"}
        assert SERVICES[node]["restart"] == "unless-stopped"


def test_only_the_gateway_is_reachable_and_only_from_its_own_machine() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8000:8000"]
    assert "8000" in of("EXPOSE")
    assert "--host 127.0.0.1 --port 8001" in " ".join(SERVICES["superlink"]["command"])
    assert "--port=8000" in SERVICES["gateway"]["command"]
    shared = {name for name, service in SERVICES.items() if "network_mode" in service}
    assert shared == {"gateway", "register", "run"}
    for name in shared:
        assert SERVICES[name]["network_mode"] == "service:superlink"


def test_no_service_runs_as_root_or_can_become_root() -> None:
    for service in SERVICES.values():
        assert "user" not in service
        assert "privileged" not in service
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_paths_in_the_comments_exist() -> None:
    for file in ("Dockerfile", "deploy/compose.yaml"):
        for path in re.findall(r"deploy/[\w.-]+\w", (ROOT / file).read_text()):
            assert Path(ROOT / path).exists(), path
