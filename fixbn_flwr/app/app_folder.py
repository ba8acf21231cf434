"""Run the Flower app in a directory with the engine, as `flwr run` does with Ray."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.serverapp import ServerApp

from fixbn_flwr.app.overrides import key_and_value
from fixbn_flwr.engine.local_grid import LocalGrid
from fixbn_flwr.engine.simulation import new_run_id, run_server
from fixbn_flwr.errors import ConfigError


class AppFolder:
    """A Flower app.

    Args:
        folder: The directory with its pyproject.toml.

    Raises:
        ConfigError: If it is not a Flower app.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        file = self._folder / "pyproject.toml"
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
            app: dict[str, Any] = content["tool"]["flwr"]["app"]
            self._components: dict[str, str] = {
                name: app["components"][name] for name in ("serverapp", "clientapp")
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file} does not describe a Flower app ({type(error).__name__}: {error}): name "
                "the directory whose pyproject.toml has [tool.flwr.app.components] with "
                "serverapp and clientapp."
            ) from error
        self._config = dict(_flat(app.get("config", {})))

    def run(self, overrides: Sequence[str], clients: int, workers: int | None) -> None:
        """Run the app.

        Args:
            overrides: KEY=VALUE arguments that change its run config.
            clients: The number of clients.
            workers: The number of clients that run at a time. Default: one per core.

        Raises:
            ConfigError: If a key is not in the app's config, or an app cannot be imported.
        """
        changes = dict(key_and_value(word, self._config) for word in overrides)
        if unknown := sorted(changes.keys() - self._config.keys()):
            raise ConfigError(
                f"{', '.join(unknown)}: not in the app's [tool.flwr.app.config]; it has "
                f"{', '.join(sorted(self._config)) or 'no keys'}."
            )
        config = {**self._config, **changes}
        server = load(self._folder, self._components["serverapp"])
        if not isinstance(server, ServerApp):
            raise ConfigError(f"{self._components['serverapp']} is not a ServerApp.")
        load_client = partial(load, self._folder, self._components["clientapp"])
        run_id = new_run_id()
        with LocalGrid(
            load_client, clients, workers=workers, run_id=run_id, run_config=config
        ) as grid:
            run_server(server, grid, config)


def load(folder: Path, reference: str) -> Any:
    """Return the object that `package.module:name` names, with a folder on the path.

    Raises:
        ConfigError: If it cannot be imported.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{reference} of {folder} cannot be imported ({type(error).__name__}: {error}): "
            "install what the app needs in this environment."
        ) from error


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested tables as keys with dots, as Flower does."""
    flat: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
