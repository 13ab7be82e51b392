"""What a neighbour's audits left open, on its account. Pure.

Honest peers leave audits open now and then: messages get lost, links break. Who hides something does so more often. So
what may have been done on purpose counts, what was passed takes as much back, and at a limit it convicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CLAIMS_MAX = 3
"""So many times that it said it is two rounds further, while no update shows it, convict a neighbour."""

EVASIONS_MAX = 5
"""So many more audits than it passed, in which it showed nothing or nothing that could be computed, convict it. In the
simulator's storms honest ones do so in one audit of 30, and never twice in a row. (measured)"""

UNHEARD_SHARE = 0.25
"""Of the models that it mixed and we should have heard too, so many may be missing here: in the simulator's storms one
in a hundred is. (measured)"""

UNHEARD_MAX = 2.0
"""So many audits with nothing but such models, beyond that share, convict; in the simulator's storms it was one at
most. (measured)"""


@dataclass(slots=True)
class Doubts:
    """About one life of a neighbour. Each method that counts says whether it was too often."""

    incarnation: int
    evaded: int = 0
    claimed: list[int] = field(default_factory=list[int])  # rounds, two further than which it says to be
    unheard: float = 0.0

    def evade(self) -> bool:
        """It did not show what it still must hold."""
        self.evaded += 1
        return self.evaded >= EVASIONS_MAX

    def claim(self, round: int, sent: int) -> bool:
        """It says that it is two rounds further than `round`; the newest of its updates is of round `sent`, and proves
        what it said earlier."""
        self.claimed = [one for one in self.claimed if sent < one + 2]
        self.claimed.append(round)
        return len(self.claimed) >= CLAIMS_MAX

    def compare(self, heard: int, unheard: int) -> bool:
        """It mixed so many models that we heard as well, and so many that we did not, and should have."""
        if heard + unheard:
            self.unheard = max(0.0, self.unheard + unheard / (heard + unheard) - UNHEARD_SHARE)
        return self.unheard >= UNHEARD_MAX

    def passed(self) -> None:
        """Nothing was wrong."""
        self.evaded = max(0, self.evaded - 1)
        self.claimed.clear()
