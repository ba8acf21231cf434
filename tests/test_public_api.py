"""Checks the public names of the package, and that importing it loads no heavy dependency."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import fixbn_flwr
from fixbn_flwr import legacy, testing

HEAVY = ("ray", "torchvision", "sklearn", "datasets", "flwr_datasets", "matplotlib", "torchmetrics")


def test_dir_lists_exactly_the_public_names() -> None:
    assert dir(fixbn_flwr) == [
        "FixBN",
        "FixBNError",
        "Phase",
        "flat_arrays_mod",
        "flat_in_deployment",
        "freeze_statistics",
        "load",
        "local_training",
        "numpy_client_mod",
        "parameters_only",
    ]


def test_every_public_name_resolves_and_is_declared_for_type_checkers() -> None:
    declared = (
        inspect.getsource(fixbn_flwr).partition("if TYPE_CHECKING:")[2].partition("\n__all__")
    )
    for name in dir(fixbn_flwr):
        value = getattr(fixbn_flwr, name)
        assert value.__name__ == name
        assert value.__doc__
        assert f"from {value.__module__} import" in declared[0]
        assert name in declared[0]


def test_the_namespace_holds_nothing_else() -> None:
    helpers = {"TYPE_CHECKING", "import_module"}
    public = {name for name in vars(fixbn_flwr) if not name.startswith("_")} - helpers
    modules = {name for name in public if inspect.ismodule(getattr(fixbn_flwr, name))}
    assert public - modules <= {*dir(fixbn_flwr)}


def test_the_older_generation_and_testing_export_their_names() -> None:
    assert legacy.__all__ == ["FixBN"]
    assert testing.__all__ == ["FIRST_NODE_ID", "SerializingGrid"]


def test_an_unknown_name_raises_an_attribute_error() -> None:
    assert not hasattr(fixbn_flwr, "FixBNClient")
    assert hasattr(import_module("fixbn_flwr.app.client.image_client"), "FixBNClient")


def test_importing_the_package_loads_no_heavy_dependency() -> None:
    code = f"import sys, fixbn_flwr; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"
