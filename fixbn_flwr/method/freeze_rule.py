"""Decide from a run's own signals when to freeze the statistics, or never to.

Freezing helps where the clients' data differ, so that their updates oppose each other. It makes no
difference, or costs a little, where they agree. It hurts where clients drift so far within a round
that the averaged statistics fit none of them. `docs/when-to-freeze.md` has the experiments behind
the numbers in this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fixbn_flwr.method.signals import Signals

WARM_UP = 0.1  # share of the rounds whose signals are not used
EARLIEST, LATEST = 0.5, 0.8  # shares of the rounds between which the statistics freeze
SMALLER = 0.5  # updates this share of their largest: the learning rate has fallen
MUCH_SMALLER = 0.4  # likewise, far enough for frozen statistics
TOO_FAR = 0.01  # disagreement above which the averaged statistics fit no client
UNRELATED = 1.0  # agreement of updates that have nothing to do with each other

Outlook = Literal["help", "make no difference", "hurt"]


@dataclass(frozen=True)
class Decision:
    """What the rule decides.

    Attributes:
        freezes: Whether the statistics freeze after this round. If not, they never do.
        reason: Why, for the log and the run folder.
    """

    freezes: bool
    reason: str


@dataclass
class FreezeRule:
    """The rule, and what it remembers of the rounds so far.

    Attributes:
        num_rounds: The number of rounds of the run.
    """

    num_rounds: int
    _rounds: int = field(default=0, init=False)
    _disagreement: float = field(default=0.0, init=False)  # summed over rounds
    _agreement: float = field(default=0.0, init=False)
    _norms: list[float] = field(default_factory=list, init=False)  # of the last three rounds
    _largest_norm: float = field(default=0.0, init=False)

    def observe(self, server_round: int, signals: Signals) -> None:
        """Take the signals of a round of exploration."""
        if server_round <= WARM_UP * self.num_rounds:
            return
        self._norms = [*self._norms[-2:], signals.update_norm]
        self._largest_norm = max(self._largest_norm, self._norm)
        if signals.disagreement is None:
            return
        self._rounds += 1
        self._disagreement += signals.disagreement
        self._agreement += signals.update_agreement

    def decide(self, server_round: int) -> Decision | None:
        """Return the decision after a round of exploration; None while it is too early."""
        if server_round < EARLIEST * self.num_rounds:
            return None
        fallen = self.update_share < SMALLER
        if not fallen and server_round < LATEST * self.num_rounds:
            return None
        when = (
            f"the clients' updates have become smaller ({self.update_share:.0%} of their largest)"
            if fallen
            else f"{LATEST:.0%} of the rounds are done"
        )
        match self.outlook():
            case None:
                return Decision(False, "no client returned statistics")
            case "help":
                return Decision(True, f"{when}, and {self.description()}")
            case "make no difference":
                return Decision(False, f"{self.description()}: they learn the same without")
            case "hurt":
                return Decision(False, f"{self.description()}: too far for one average")

    @property
    def update_share(self) -> float:
        """The length of the clients' updates now, as a share of their largest so far."""
        return self._norm / self._largest_norm if self._largest_norm > 0 else 1.0

    def outlook(self) -> Outlook | None:
        """Return what freezing is likely to do; None if no round had statistics."""
        if not self._rounds:
            return None
        if self._agreement >= UNRELATED * self._rounds:
            return "make no difference"
        return "hurt" if self._disagreement > TOO_FAR * self._rounds else "help"

    def description(self) -> str:
        """Return how far the clients' statistics and updates differ, in words."""
        rounds = max(1, self._rounds)
        return (
            f"clients' statistics differ by {self._disagreement / rounds:.2g} and their updates "
            f"agree {self._agreement / rounds:.2g} times as much as unrelated ones"
        )

    @property
    def _norm(self) -> float:
        return sorted(self._norms)[len(self._norms) // 2] if self._norms else 0.0

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, for a checkpoint."""
        state = asdict(self)
        del state["num_rounds"]
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned."""
        vars(self).update(state)
