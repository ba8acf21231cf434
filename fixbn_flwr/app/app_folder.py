"""Run the Flower app in a directory with the engine, as `flwr run` does with Ray."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fixbn_flwr.app.config.rules import list_of_keys, unknown_key
from fixbn_flwr.app.overrides import key_and_value
from fixbn_flwr.engine.simulation import run_federation
from fixbn_flwr.errors import ConfigError

App = TypeVar("App", ServerApp, ClientApp)


class AppFolder:
    """A Flower app.

    Args:
        folder: The directory with its pyproject.toml.

    Attributes:
        run_config: The values of its run config, by key.

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
        self.run_config = dict(_flat(app.get("config", {})))

    def run(self, overrides: Sequence[str], clients: int, workers: int | None) -> None:
        """Run the app.

        Args:
            overrides: KEY=VALUE arguments that change its run config.
            clients: The number of clients.
            workers: The number of clients that run at a time. Default: one per core.

        Raises:
            ConfigError: If a key is not in the app's config, or an app cannot be imported.
        """
        changes = dict(key_and_value(word, self.run_config) for word in overrides)
        if unknown := sorted(changes.keys() - self.run_config.keys()):
            where = "not in the app's [tool.flwr.app.config]"
            if not self.run_config:
                raise ConfigError(f"{', '.join(unknown)}: {where}, which has no keys: remove it.")
            lines = [f"{key}: {where}; {unknown_key(key, [*self.run_config])}" for key in unknown]
            raise ConfigError("\n  ".join([*lines, list_of_keys(sorted(self.run_config))]))
        for key, value in changes.items():
            _check_type(key, value, self.run_config[key])
        server, client = (self._components[name] for name in ("serverapp", "clientapp"))
        run_federation(
            load(self._folder, server, ServerApp),
            partial(load, self._folder, client, ClientApp),
            clients,
            workers=workers,
            run_config={**self.run_config, **changes},
        )


def _check_type(key: str, value: object, default: object) -> None:
    """Check that a value has the type of the key's default; Flower's apps rely on it."""
    whole_for_float = isinstance(default, float) and type(value) is int
    if type(value) is not type(default) and not whole_for_float:
        raise ConfigError(
            f"{key} = {value!r} has the type {type(value).__name__}, but the app's default "
            f"{default!r} has the type {type(default).__name__}: write a value of that type as in "
            "TOML, such as true, 3, 0.5 or text."
        )


def load(folder: Path, reference: str, kind: type[App]) -> App:
    """Return the app that `package.module:name` names, with a folder on the path.

    Raises:
        ConfigError: If it cannot be imported, or is no app of this kind.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module, _, name = reference.partition(":")
    try:
        app = getattr(import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(
            f"{reference} of {folder} cannot be imported ({type(error).__name__}: {error}): "
            "check [tool.flwr.app.components] in its pyproject.toml, which names "
            "package.module:app, and install what the app needs in this environment."
        ) from error
    if not isinstance(app, kind):
        raise ConfigError(
            f"{reference} of {folder} has the type {type(app).__name__}, not {kind.__name__}: "
            "correct [tool.flwr.app.components] in its pyproject.toml."
        )
    return app


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested tables as keys with dots, as Flower does."""
    flat: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
