"""Checks which package may import which, and which may import private parts of Flower."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fixbn_flwr"

# From the inside out. A package may import packages of its own line and of the lines before it.
LAYERS = [
    {"errors", "log"},
    {"method"},
    {"flower_compat"},
    {"array_records"},
    {"persistence"},
    {"client", "server", "models"},
    {"fastai", "huggingface", "legacy", "lightning", "tasks", "tracking"},
    {"engine"},
    {"transport", "testing"},
    {"app"},
    {"__main__"},
]

PUBLIC = [
    "flwr.app",
    "flwr.client",
    "flwr.client.mod",
    "flwr.clientapp",
    "flwr.clientapp.mod",
    "flwr.common",
    "flwr.server",
    "flwr.server.strategy",
    "flwr.server.workflow",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.simulation",
]


def imports(module: Path) -> Iterator[tuple[str, str]]:
    """Yield what a module imports, as (module, name); the name is empty for `import module`."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def package_of(dotted: str) -> str:
    """Return the package of fixbn_flwr that a dotted name lies in: "method", "errors", ...."""
    return dotted.split(".")[1] if dotted.count(".") else ""


def backward_imports(package: Path) -> list[str]:
    """Return every import that points outward."""
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names}
    found = []
    for module in sorted(package.rglob("*.py")):
        own = module.relative_to(package).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for imported, name in imports(module):
            if imported.split(".")[0] != "fixbn_flwr":
                continue
            other = package_of(imported) or name
            allowed = other == own or layer_of[other] < layer_of[own]
            if not allowed:
                found.append(f"{module.relative_to(package)} imports {imported}.{name}")
    return found


def flower_imports(module: Path) -> list[str]:
    return [f"{imported}.{name}" for imported, name in imports(module) if is_flower(imported)]


def is_flower(imported: str) -> bool:
    return imported.split(".", maxsplit=1)[0] in {"flwr", "flwr_datasets"}


def is_private(imported: str, name: str) -> bool:
    return is_flower(imported) and not (
        imported in PUBLIC and name in import_module(imported).__all__
    )


def test_every_package_has_a_layer() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__init__", "__pycache__", "py"} == set().union(*LAYERS)


def test_no_import_points_outward() -> None:
    assert backward_imports(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("method/schedule.py", "from fixbn_flwr.server.strategy import FixBN"),
        ("client/local_training.py", "import fixbn_flwr.app.cli"),
        ("server/strategy.py", "from fixbn_flwr import app"),
        ("legacy/strategy.py", "def f():\n    from fixbn_flwr.testing import SerializingGrid"),
    ],
)
def test_a_backward_import_is_found(tmp_path: Path, module: str, line: str) -> None:
    path = tmp_path / module
    path.parent.mkdir()
    path.write_text(line)
    assert len(backward_imports(tmp_path)) == 1


def test_the_method_does_not_import_flower() -> None:
    inner = [*(PACKAGE / "method").rglob("*.py"), PACKAGE / "errors.py", PACKAGE / "log.py"]
    assert [entry for module in inner for entry in flower_imports(module)] == []


def test_private_parts_of_flower_are_imported_in_one_place() -> None:
    simulation = PACKAGE.parent / "simulation"
    # The overhead benchmark calls a method of HttpGrid that this package replaces.
    allowed = {PACKAGE / "flower_compat.py", simulation / "benchmarks" / "overhead_server.py"}
    modules = {*PACKAGE.rglob("*.py"), *simulation.rglob("*.py")} - allowed
    assert [
        f"{module.relative_to(PACKAGE.parent)} imports {imported}.{name}"
        for module in sorted(modules)
        for imported, name in imports(module)
        if imported.startswith("flwr.") and is_private(imported, name)
    ] == []
