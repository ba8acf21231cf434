"""The commands `fixbn predict` and `fixbn export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

# The rest is imported where it is used: the help must not wait for torch.

SHOWN = 3  # classes per image


class _Which(StrEnum):
    BEST = "best"
    FINAL = "final"


class _Format(StrEnum):
    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    SAFETENSORS = "safetensors"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
WhichModel = Annotated[
    _Which | None,
    typer.Option(
        help="best: the model with the best validation accuracy, of a run with validation-share; "
        "final: after the last round. Default: best if there is one."
    ),
]


def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    which: WhichModel = None,
) -> None:
    """Classify images with the model of a run; print the most probable classes."""
    from fixbn_flwr.app.inference.loading import load

    model = load(run, which.value if which else None)
    for path, prediction in zip(images, model.predict(images), strict=True):
        print(f"{path}: {', '.join(f'{name} {p:.1%}' for name, p in prediction.classes[:SHOWN])}")


def export(
    run: Run,
    file_format: Annotated[_Format, typer.Option("--format", help="The format of the file.")],
    which: WhichModel = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The folder to write to. Default: export-best or -final in RUN."),
    ] = None,
) -> None:
    """Export the model of a run to one file, with a model card for Hugging Face."""
    from fixbn_flwr.app.inference.export import export as export_model

    path = export_model(run, file_format.value, which.value if which else None, output)
    print(f"Wrote {path}\nModel card, licence to be chosen: {path.parent / 'README.md'}")
