"""All errors that this package raises, in one tree.

    FixBNError
    ├── ConfigError            a value from the user cannot work (also a ValueError)
    ├── NoStatisticsError      there is no batch normalization layer to freeze
    ├── StatisticsMovedError   frozen statistics changed while a client trained
    ├── MomentumError          momentum buffers do not fit the model or the optimizer
    ├── ReplyError             a client's reply cannot be averaged
    │   ├── NoExamplesError    the client has no examples
    │   └── NotFiniteError     it holds NaN or infinity: the client's training diverged
    ├── RoundsFailedError      no client returns a usable update
    ├── ClientsMissingError    fewer clients are connected than a round needs
    ├── CheckpointError        a checkpoint cannot be written or resumed from
    ├── SuperLinkError         the SuperLink does not start, answer or accept a run
    └── WorkerError            a worker process does not start, or ends during its work

Each message names the value, the reason and the remedy.
"""


class FixBNError(Exception):
    """Root of the tree: ``except FixBNError`` catches all errors of this package.

    Examples:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> from fixbn_flwr import FixBN, FixBNError
        >>> try:
        ...     FixBN(FedAvg(), freeze_after=-1)
        ... except FixBNError as error:
        ...     print(str(error).partition(",")[0])
        freeze_after=-1 is a negative round: use 1 or more
    """


class ConfigError(FixBNError, ValueError):
    """A value from the user cannot work."""


class NoStatisticsError(FixBNError):
    """A model, or the arrays of one, holds no running statistics to freeze."""


class StatisticsMovedError(FixBNError):
    """Frozen statistics changed during local training."""


class MomentumError(FixBNError):
    """Momentum buffers do not fit the model or the optimizer."""


class ReplyError(FixBNError):
    """A client's reply cannot be averaged with the others."""


class NotFiniteError(ReplyError):
    """A client's reply holds NaN or infinity: its training diverged."""


class NoExamplesError(ReplyError):
    """A client has no examples, so its reply has no weight."""


class RoundsFailedError(FixBNError):
    """The first round, or several rounds in a row, brought no usable update.

    Attributes:
        diverged: Whether NaN or infinity was among the causes.
    """

    def __init__(self, message: str, *, diverged: bool = False) -> None:
        super().__init__(message)
        self.diverged = diverged


class ClientsMissingError(FixBNError):
    """Fewer clients are connected than a round needs, and the wait for more timed out."""


class CheckpointError(FixBNError):
    """A checkpoint cannot be written, or a run cannot resume from it."""


class SuperLinkError(FixBNError):
    """The SuperLink does not start, does not answer, or does not accept the run."""


class WorkerError(FixBNError):
    """A worker process does not start, or ends while it handles a message."""
