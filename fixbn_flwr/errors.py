"""Every error this package raises, in one tree.

    FixBNError
    ├── ConfigError            a value the user gave cannot work (also a ValueError)
    ├── NoStatisticsError      there is no batch normalisation layer to freeze
    ├── StatisticsMovedError   frozen statistics were changed while a client trained
    ├── MomentumError          momentum buffers do not belong to this model or optimiser
    ├── ReplyError             a client's reply cannot be averaged
    │   ├── NoExamplesError    the client has no examples
    │   └── NotFiniteError     it holds NaN or infinity: the client's training diverged
    ├── RoundsFailedError      no client delivers a usable update any more
    ├── ClientsMissingError    fewer clients are connected than a round needs
    └── CheckpointError        a run cannot be kept, or cannot go on from what was kept

Each message names the value, says why it cannot work, and what to do about it.
"""


class FixBNError(Exception):
    """Root of the tree: ``except FixBNError`` catches whatever this package raises."""


class ConfigError(FixBNError, ValueError):
    """A value given by the user cannot work."""


class NoStatisticsError(FixBNError):
    """A model, or the arrays of one, holds no running statistics to freeze."""


class StatisticsMovedError(FixBNError):
    """Frozen statistics were changed during local training."""


class MomentumError(FixBNError):
    """Momentum buffers do not fit the model or the optimiser they are meant for."""


class ReplyError(FixBNError):
    """A client's reply lacks what averaging needs, or holds what must not be averaged."""


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
    """Fewer clients than a round needs are connected, and waiting has not helped."""


class CheckpointError(FixBNError):
    """A checkpoint cannot be written, or is not one that a run can go on from."""
