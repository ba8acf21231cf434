"""What differs between releases of Flower: missing parts, and releases that nobody has tested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flwr.serverapp.strategy import FedAvg

from fixbn_flwr import FixBN, flower_compat
from fixbn_flwr.errors import ConfigError


@pytest.fixture(autouse=True)
def _as_in_a_new_process() -> Iterator[None]:
    flower_compat.warn_if_untested.cache_clear()
    yield
    flower_compat.warn_if_untested.cache_clear()


@pytest.mark.parametrize("installed", ["1.99.0", "2.0.0", "1.43.0.dev20261201"])
def test_a_newer_flower_causes_one_warning(
    installed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flower_compat, "version", lambda _: installed)
    for _ in range(3):
        FixBN(FedAvg(), freeze_after=1)
    (line,) = caplog.messages
    assert line.startswith(f"flwr {installed} is newer than 1.42, the newest that")


@pytest.mark.parametrize("installed", ["1.17.0", "1.42.9"])
def test_a_tested_flower_causes_none(
    installed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flower_compat, "version", lambda _: installed)
    FixBN(FedAvg(), freeze_after=1)
    assert not caplog.messages


def test_a_strategy_that_a_release_does_not_have_is_left_out() -> None:
    assert flower_compat.message_api_strategies("NoSuchStrategy", "FedAvg") == (FedAvg,)


def test_a_part_that_an_old_release_does_not_have_names_the_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flower_compat, "version", lambda _: "1.30.0")
    monkeypatch.setitem(flower_compat._RECENT, "pull_objects", "flwr.no_such_module")
    with pytest.raises(
        ConfigError, match=r"needs Flower 1\.41 or newer, and 1\.30\.0 is installed"
    ):
        flower_compat.__getattr__("pull_objects")
    with pytest.raises(AttributeError, match="no_such_name"):
        flower_compat.__getattr__("no_such_name")
