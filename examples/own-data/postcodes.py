"""An example of your own task: digits of postcodes from several post offices.

The data folder has one PNG file of 8x8 grey pixels per digit:

    <data-dir>/train/<post office>/<digit>/<any name>.png      and the same in <data-dir>/test
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.resnet20 import ResidualNetwork
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tasks.images import decode
from fixbn_flwr.tasks.metrics import Accuracy

CLASSES = list("0123456789")


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """Return the training and the test images."""
    if data_dir is None:
        raise ConfigError("data-dir is empty: set it to the folder with train and test.")
    return read(data_dir / "train"), read(data_dir / "test")


def read(folder: Path) -> Split:
    """Return the images in a folder, with the digit and post office of each."""
    files = sorted(file for name in CLASSES for file in folder.glob(f"*/{name}/*.png"))
    if not files:
        raise ConfigError(f"{folder} has no <post office>/<digit>/*.png: check data-dir.")
    offices = sorted({file.parts[-3] for file in files})
    return Split(
        images=decode(files, [str(file) for file in files], "L", (8, 8)),
        targets=torch.tensor([CLASSES.index(file.parts[-2]) for file in files]),
        groups=torch.tensor([offices.index(file.parts[-3]) for file in files]),
    )


def network(norm: str) -> nn.Module:
    """Return the network. `norm` is the normalisation from the run config."""
    return ResidualNetwork(1, len(CLASSES), widths=(16, 32), blocks=1, norm=norm)


TASK = Task(
    name="postcodes",
    classes=len(CLASSES),
    load=load,
    models={"small": network},
    mean=(67.2,),
    std=(85.6,),
    augment=None,
    loss=cross_entropy,
    metric=Accuracy,
    class_names=tuple(CLASSES),
)
