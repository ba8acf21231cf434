"""The keys of the run config, each with its default, unit and meaning.

A key of `flwr run --run-config` is a field of `Keys` with `-` for `_`.
"""
# ruff: noqa: RUF009 -- setting() returns a dataclass field

from dataclasses import dataclass
from typing import Literal

from fixbn_flwr.app.class_weights import ClassWeights
from fixbn_flwr.app.config import rules
from fixbn_flwr.app.config.rules import setting
from fixbn_flwr.app.local_step import Precision
from fixbn_flwr.method.options import StatisticsAverage
from fixbn_flwr.method.round_config import MomentumMode
from fixbn_flwr.method.schedule import FreezeAfter
from fixbn_flwr.method.switch import LearningRateFactor
from fixbn_flwr.models.norm import NORMS
from fixbn_flwr.tasks import DATA_TASKS, TASKS
from fixbn_flwr.tasks.data_task import Augmentation
from fixbn_flwr.tasks.partition import Scheme

LearningRateSchedule = Literal["constant", "cosine", "step", "halfway"]


@dataclass(frozen=True)
class Keys:
    """The keys of the run config; `settings.Settings` has what they mean together."""

    task: str = setting(
        "digits",
        "data set, model and loss; `folder` and `folder-segmentation` are your images in "
        "`data-dir`, `hf:NAME` is a data set of Hugging Face",
        choices=(*TASKS, *DATA_TASKS), pattern=rules.OWN_TASK,
    )  # fmt: skip
    data_dir: str = setting("", "directory of the task's files; empty: the task's default", "path")
    image_size: int = setting(
        0, "height and width of the images of `folder` and `hf:NAME`; 0: their own, if all have "
        "one", "pixels", at_least=0, at_most=4096,
    )  # fmt: skip
    augmentation: Augmentation = setting(
        "crop-and-flip",
        "random changes of the training images of `folder` and `hf:NAME`: shifts and mirroring, "
        "shifts alone, or none",
    )
    label_column: str = setting(
        "",
        "column of `hf:NAME` with the classes; empty: `label`, `labels` or the only `ClassLabel` "
        "column",
    )
    group_column: str = setting(
        "", "column of `hf:NAME` with the natural clients, such as writers; empty: none"
    )
    model: str = setting(
        "", "network of the task, `timm:NAME` or `torchvision:NAME`; empty: the task's default"
    )
    pretrained: str = setting(
        "", "file with weights of `model`, on the server, that the run starts from; empty: none",
        "path",
    )  # fmt: skip
    class_weights: ClassWeights = setting(
        "none", "weights of the classes in the training loss; `balanced`: rare classes count more"
    )
    norm: str = setting(
        "bn", "normalisation layers of the network", choices=NORMS, pattern=rules.GROUPS
    )
    partition: Scheme = setting("classes", "how the images are divided among the clients")
    partition_alpha: float = setting(
        0.3, "concentration of `dirichlet`: smaller values make clients differ more", above=0
    )
    partition_classes: int = setting(
        2, "classes of each client in `classes`", "classes", at_least=1
    )
    num_server_rounds: int = setting(40, "number of rounds of the run", "rounds", at_least=1)
    freeze_after: FreezeAfter = setting(
        0.5,
        "T*, the last round before the statistics freeze: a whole number of rounds, or a share of "
        "them: `1` is one round, `1.0` is all rounds (plain BN); `auto` decides during the run",
        "rounds or share",
        choices=("auto",), above=0,
    )  # fmt: skip
    momentum: MomentumMode = setting(
        "local",
        "SGD's momentum buffers between rounds: `reset` to zero, kept at each client (`local`), or "
        "averaged by the server (`global`)",
    )
    momentum_coefficient: float = setting(0.9, "SGD's momentum", at_least=0, below=1)
    statistics: StatisticsAverage = setting("mean", "how the clients' variances are averaged")
    learning_rate_factor: LearningRateFactor = setting(
        0.1, "multiplies the learning rate in calibration", "factor", choices=("auto",), above=0
    )
    guard: bool = setting(True, "go back to T* with a smaller rate if the run falls apart after it")
    compare_gradients_every: int = setting(
        0, "interval at which clients compare gradients until T*; 0: never", "rounds", at_least=0
    )
    fraction_train: float = setting(
        1.0, "share of the clients that train in each round", "share", above=0, at_most=1
    )
    min_clients: int = setting(
        2, "number of clients with their own data (`data-dir` in the node config) that a run and "
        "each round wait for", "clients", at_least=1,
    )  # fmt: skip
    round_timeout: float = setting(
        3600.0, "time after which a round ends without the clients that have not replied", "s",
        above=0,
    )  # fmt: skip
    local_steps: int = setting(
        5, "mini-batches per client and round; 0: use local-epochs", "steps", at_least=0
    )
    local_epochs: int = setting(
        0, "passes over the images per client and round; 0: use local-steps", "epochs", at_least=0
    )
    batch_size: int = setting(16, "mini-batch size", "images", at_least=1)
    learning_rate: float = setting(0.05, "SGD's learning rate in round 1", above=0)
    learning_rate_schedule: LearningRateSchedule = setting(
        "constant",
        "`cosine` decays to zero over the rounds, `step` multiplies by 0.1 after 75 % of them, "
        "`halfway` after 50 %",
    )
    weight_decay: float = setting(0.001, "SGD's L2 penalty", at_least=0)
    evaluate_every: int = setting(
        1, "interval at which the server tests the global model; always at T* and the last round; "
        "0: never, so that it needs no images", "rounds", at_least=0,
    )  # fmt: skip
    validation_share: float = setting(
        0.0, "share of its images that each client holds out, does not train on, and validates the "
        "global model on; 0: no validation, and no best model", "share", at_least=0, below=1,
    )  # fmt: skip
    evaluate_clients_every: int = setting(
        1, "interval at which all clients validate the global model; always in the last round",
        "rounds", at_least=1,
    )  # fmt: skip
    patience: int = setting(
        0, "number of rounds without a better validation accuracy after which the run ends, "
        "counted from T* on; 0: never", "rounds", at_least=0,
    )  # fmt: skip
    seed: int = setting(0, "seed of all random choices", at_least=0, at_most=2**32 - 1)
    device: str = setting("auto", "`auto`, `cpu`, `cuda`, or a specific GPU such as `cuda:1`")
    precision: Precision = setting("float32", "arithmetic of the clients' training")
    cuda_graphs: bool = setting(
        True, "whether a local step on a GPU is captured as a CUDA graph, which is faster"
    )
    output_dir: str = setting("", "parent directory of run folders; empty: `~/fixbn-runs`", "path")
    run_name: str = setting("", "name of the run folder; empty: time, task and method")
    track: str = setting(
        "", "trackers that log the run, separated by commas: `tensorboard`, `mlflow`, `wandb`"
    )
    state_dir: str = setting(
        "", "directory of momentum buffers on a client's machine; empty: Flower's state", "path"
    )
    checkpoint_every: int = setting(
        1, "interval of the server's checkpoints, always at T* and the last round; 0: none",
        "rounds", at_least=0,
    )  # fmt: skip
    keep_checkpoints: int = setting(2, "number of newest checkpoints to keep", "files", at_least=1)
    resume: str = setting("", "folder of a run to resume; empty: a new run", "path")
    may_change: str = setting("", "comma-separated keys whose values may change in a resumed run")
