"""Peers that lie, for experiments: they train and mix like any other, speak the real protocol, and send something else.

Each sees what a peer at its place would see, and answers before it hears the others' models of the same round; one that
is omniscient (`attack.omniscient`, in simulations only) knows all of them. Those who lie together know each other's
names. Poisoners train on bad data instead and, in the exchange `models`, may take longer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.mixing import Mixer
from murmurate.peer.learning.randomness import derive
from murmurate.peer.learning.tasks import Task, make_task, poison
from murmurate.peer.protocol.events import Payload

from .codes import distort_codes
from .lies import LIES, Means
from .view import Board, Heard

__all__ = ["Board", "Liar", "data_of", "distort_codes", "make_liar", "task_of"]

POISONS = {"label_flip": "label_flip", "backdoor": "backdoor", "sybil": "label_flip"}
"""Attacks that begin with the data, and how those are poisoned."""

SEARCH_EVERY = 4
"""Rounds from one line search to the next of a liar by itself; omniscient ones share theirs and search in every round,
as in MoNNA. (a guess: a search takes longer than a round of a small model)"""


class Liar:
    """The mouth of a peer that exchanges models."""

    def __init__(
        self,
        config: Config,
        mixer: Mixer | None,
        pack: Callable[[Tensor], Payload],
        unpack: Callable[[Payload, Tensor], None],
        board: Board | None,
    ) -> None:
        attack = config.attack
        self._pack, self._unpack, self._board = pack, unpack, board if attack.omniscient else None
        self._heard = Heard(frozenset(attack.accomplices) - {config.name})
        kind = LIES[attack.name]
        # Who is to say the same as its accomplices draws the same.
        seed = derive(config.swarm.seed, "attack", -1 if kind.shared else config.index)
        every = 1 if self._board else SEARCH_EVERY
        self._lie = kind(Means(attack.scale, seed, pack, mixer, every))
        self.trains = kind.trains
        """Whether it takes local steps."""

    def mixed(self, senders: Sequence[str], theirs_KD: Tensor, mixed_D: Tensor) -> None:
        """What the neighbours sent has been mixed into this model."""
        self._heard.mixed(senders, theirs_KD, mixed_D)

    def say(self, round: int, mine_D: Tensor) -> Payload:
        """What to send in place of this model."""
        view = self._heard.look(round, mine_D)
        said: Tensor | Payload
        if self._board is None:
            said = self._lie(view)
        else:
            view = self._board.look(view, self._unpack)
            said = self._board.once(view, self._lie) if self._lie.shared else self._lie(view)
        return self._pack(said) if isinstance(said, Tensor) else said


def make_liar(
    config: Config,
    mixer: Mixer | None,
    pack: Callable[[Tensor], Payload],
    unpack: Callable[[Payload, Tensor], None],
    board: Board | None = None,
) -> Liar | None:
    """The liar of the configuration, or None for an honest peer.

    `mixer`: the rule to be fooled, None if it cannot be tried out. Raises ConfigError for an omniscient one without a
    board.
    """
    if config.attack.name == "none":
        return None
    if config.attack.omniscient and board is None:
        raise ConfigError("attack.omniscient: no real peer sees what all send; only `murmurate lab run` simulates one")
    return Liar(config, mixer, pack, unpack, board)


def data_of(config: Config) -> Config:
    """Whose data this peer trains on: an attacker's Sybils are one peer, the first by name, under many names."""
    if config.attack.name == "sybil":
        return config.model_copy(update={"name": min([config.name, *config.attack.accomplices])})
    return config


def task_of(config: Config) -> Task:
    """What this peer trains on: its task, poisoned if its attack begins there. Raises ConfigError as `make_task`, and
    where there are no labels to poison.
    """
    task = make_task(data_of(config))
    if config.attack.name in POISONS:
        poison(task, POISONS[config.attack.name])
    return task
