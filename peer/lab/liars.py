"""Peers that lie in the `seeds` exchange: an honest core behind a mouth that says something else."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from random import Random

from murmurate.peer.protocol.events import Body, Have, PeerId, Rumor, Vector
from murmurate.peer.protocol.records import Batch, FeedState, Fork, Origin, Retraction

from .life import Life
from .seeds_life import SeedsLife, signed

FORKED_FROM = 4  # the first number of which a forker has two batches


class Lies(Enum):
    """What a liar does."""

    FORK = "fork"  # tells half of its neighbours other batches of its own, well signed
    GARBAGE = "garbage"  # mutates whatever it says
    FORGE = "forge"  # adds batches and rulings in the names of others
    BOAST = "boast"  # says that it holds far more than there is, and never delivers


class Liar:
    """Alters what a peer says."""

    def __init__(self, lies: Lies) -> None:
        self._lies = lies
        self._own = Origin(b"")
        self._worn = set[Origin]()

    def say(self, body: Body, to: int, random: Random) -> tuple[Body, ...]:
        """What goes out instead of `body` to peer `to`."""
        match self._lies:
            case Lies.FORK:
                return (self._fork(body),) if to % 2 else (body,)
            case Lies.GARBAGE:
                return (mutated(body, random),) if random.random() < 0.3 else (body,)
            case Lies.FORGE:
                return (body, *_forged(body, random))
            case Lies.BOAST:
                return _boast(body, random)

    def _fork(self, body: Body) -> Body:
        if not isinstance(body, Rumor):
            return body
        return replace(body, batches=tuple(map(self._variant, body.batches)))

    def _variant(self, batch: Batch) -> Batch:
        """The same batch as the other half of the neighbours hears it, if it is one of ours."""
        if batch.number < FORKED_FROM or batch.origin != self._own:
            return batch
        return signed(replace(batch, codes=bytes(code ^ 1 for code in batch.codes)))

    def wears(self, origin: Origin) -> None:
        """Which key is ours now."""
        self._own = origin
        self._worn.add(origin)

    def wore(self, origin: Origin) -> bool:
        """Whether that key is or was ours."""
        return origin in self._worn


class Noise:
    """Mischief with rumors; see network.Mischief."""

    def garbage(self, _life: Life, body: Body, random: Random) -> Body | None:
        """Something like it that nobody said."""
        return mutated(body, random)

    def stranger(self, life: Life, _name: PeerId, _incarnation: int, random: Random) -> Body:
        """Anything: it comes from nobody whom `life` listens to."""
        assert isinstance(life, SeedsLife)
        return random.choice((Have(random.randbytes(16)), Rumor((_noise_batch(life.disk.origin, random),)), Vector(())))


def mutated(body: Body, random: Random) -> Body:
    """A body of the same kind that differs somewhere."""
    match body:
        case Have(digest, weights):
            return Have(random.randbytes(len(digest)), weights)
        case Vector(feeds, whole):
            return Vector(tuple(_mutated_state(state, random) for state in feeds), whole)
        case Rumor(batches, rulings, more):
            shuffled = [_mutated_batch(batch, random) for batch in batches]
            random.shuffle(shuffled)
            return Rumor(tuple(shuffled), tuple(_mutated_ruling(ruling, random) for ruling in rulings), not more)
        case _:
            return body


def _mutated_state(state: FeedState, random: Random) -> FeedState:
    return random.choice(
        (
            replace(state, count=max(0, state.count + random.randint(-3, 3))),
            replace(state, head=random.randbytes(len(state.head))),
            replace(state, closed=random.randint(0, 40)),
            replace(state, origin=Origin(random.randbytes(32))),
            state,
        )
    )


def _mutated_batch(batch: Batch, random: Random) -> Batch:
    return random.choice(
        (
            replace(batch, number=max(0, batch.number + random.randint(-2, 2))),
            replace(batch, round=max(0, batch.round + random.randint(-2, 2))),
            replace(batch, codes=random.randbytes(len(batch.codes))),
            replace(batch, codes=batch.codes[:-1]),
            replace(batch, signature=b""),
            replace(batch, origin=Origin(random.randbytes(32))),
            batch,
        )
    )


def _mutated_ruling(ruling: Fork | Retraction, random: Random) -> Fork | Retraction:
    if isinstance(ruling, Fork):
        return Fork(ruling.one, random.choice((ruling.one, _mutated_batch(ruling.other, random))))
    return replace(ruling, from_seq=random.randint(0, 40))


def _noise_batch(origin: Origin, random: Random) -> Batch:
    number = random.randint(1, 9)
    return Batch(origin, number, number, random.randbytes(4), random.randbytes(8))


def _forged(body: Body, random: Random) -> tuple[Body, ...]:
    if not isinstance(body, Rumor) or not body.batches:
        return ()
    model = random.choice(body.batches)
    later = replace(model, number=model.number + 1, round=model.round + 1, codes=random.randbytes(len(model.codes)))
    other = replace(model, codes=random.randbytes(len(model.codes)))
    retraction = Retraction(model.origin, 0, random.randbytes(32), random.randbytes(8))
    return (random.choice((Rumor((later,)), Rumor((other,)), Rumor(rulings=(Fork(model, other), retraction)))),)


def _boast(body: Body, random: Random) -> tuple[Body, ...]:
    match body:
        case Have():
            return (Have(random.randbytes(16)),)
        case Vector(feeds, whole):
            return (Vector(tuple(replace(state, count=state.count + 1000) for state in feeds), whole),)
        case Rumor(batches) if len(batches) > 1:
            return (Rumor(more=True),)
        case _:
            return (body,)
