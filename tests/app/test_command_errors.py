"""What a command line prints when packages are missing or Flower is too old."""

from __future__ import annotations

import pytest
import typer

from fixbn_flwr.app import command_errors
from fixbn_flwr.app.command_errors import run_commands


def failing_with(error: Exception) -> typer.Typer:
    commands = typer.Typer()

    @commands.callback(invoke_without_command=True)
    def fail() -> None:
        raise error

    return commands


def test_a_package_of_the_app_that_is_missing_is_named_with_its_extra(
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    with pytest.raises(SystemExit) as ended:
        run_commands(failing_with(missing), [])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: matplotlib is not installed")
    assert 'pip install "fixbn-flwr[app]"' in error


def test_any_other_missing_module_keeps_its_traceback() -> None:
    missing = ModuleNotFoundError("No module named 'own'", name="own")
    with pytest.raises(ModuleNotFoundError):
        run_commands(failing_with(missing), [])


@pytest.mark.parametrize("installed", ["1.17.0", "1.40.9"])
def test_an_old_flower_is_refused_with_the_version_that_is_needed(
    installed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_errors, "version", lambda _: installed)
    with pytest.raises(SystemExit):
        run_commands(failing_with(AssertionError("it must not run")), [])
    assert f"flwr {installed} is installed, and the app needs 1.41 or newer" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("installed", ["1.41.0", "1.50.1", "2.0.0"])
def test_a_recent_flower_is_not(installed: str) -> None:
    command_errors.check_flower(installed)
