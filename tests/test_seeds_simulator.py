"""Whole swarms that gossip seeds, in virtual time: safe in a storm, one set and one model after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from murmurate.peer.lab.liars import Lies
from murmurate.peer.lab.life import Life
from murmurate.peer.lab.seeds_drill import PACING, RECORDS, seeds_drill, seeds_drills, seeds_plan
from murmurate.peer.lab.seeds_life import Disk, signed
from murmurate.peer.lab.seeds_referee import Book, SeedsReferee
from murmurate.peer.lab.seeds_simulator import SeedsPlan, SeedsSwarm, feeds_of, simulate_seeds
from murmurate.peer.lab.sim import run_sim
from murmurate.peer.lab.swarm import Outcome
from murmurate.peer.lab.tally import Ledger, Tally, weights_digest
from murmurate.peer.lab.weather import FAIR, STORM
from murmurate.peer.protocol.difference import size
from murmurate.peer.protocol.events import Audit, Body, Effect, Fact, Fold, Leave, PeerId, Send, Sign, Train, Voided
from murmurate.peer.protocol.feeds import Feeds, Judgement
from murmurate.peer.protocol.probing import Probing
from murmurate.peer.protocol.records import Batch, Origin, Retraction
from murmurate.peer.protocol.rumors import Rumors
from murmurate.topology import Topology

from .scene import B, Z
from .seeds_scene import batch, birth, fresh, key

SEEDS, SEEDS_EACH = 1000, 50
HASTY = replace(PACING, join_s=0.0)
CRASHES = replace(STORM, crash=0.6)
TORN = replace(CRASHES, partition_s=20.0, whole_s=3.0)


def assert_sound(outcome: Outcome) -> None:
    assert (outcome.violations, outcome.stalled) == ((), ()), f"SEED={outcome.seed}"
    assert outcome.safe
    assert outcome.live


class Watched(SeedsSwarm):
    """A swarm that is listened to."""

    def __init__(self, plan: SeedsPlan) -> None:
        self.facts: list[tuple[int, Fact]] = []
        self.spoken: list[tuple[float, int]] = []  # when, and how many bytes
        self.counts: list[dict[Origin, int]] = []  # how long each peer's feeds were at the time of `note`
        super().__init__(plan)

    def reported(self, life: Life, fact: Fact) -> None:
        self.facts.append((life.index, fact))
        super().reported(life, fact)

    def send(self, life: Life, other: Life, body: Body) -> None:
        self.spoken.append((self._schedule.now, size(body)))
        super().send(life, other, body)

    def published(self, origin: Origin) -> dict[int, Batch]:
        return self._book.published[origin]

    def note_at(self, at_s: float) -> None:
        self._schedule.after(at_s, lambda: self.counts.extend(feeds_of(life).cut() for life in self.lives))

    def void_at(self, at_s: float, target: int) -> None:
        """Peer 0 voids all that another one ever published."""
        self._schedule.after(at_s, lambda: self.retract(self.lives[0], self.lives[target].disk.origin, 0))

    def ends(self) -> set[tuple[bytes, bytes]]:
        """Digests of sets and weights, of all peers."""
        return {(feeds_of(life).digest, weights_digest(life.replica.weights)) for life in self.lives}


# Storms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_EACH))
def test_swarms_survive_storms_liars_and_retractions(first: int) -> None:
    crashes = 0
    for outcome in seeds_drills(range(first, first + SEEDS_EACH)):
        assert_sound(outcome)
        crashes += outcome.crashes
    assert crashes > SEEDS_EACH / 2


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rule", ["ring", "star", "complete", "torus"])
def test_every_kind_of_graph_survives_a_storm(rule: str, shared: bool) -> None:
    assert_sound(simulate_seeds(seeds_plan(3, 9, topology=Topology(rule, 9), shared=shared)))


def test_a_larger_swarm_survives_a_storm() -> None:
    assert_sound(simulate_seeds(seeds_plan(1, 24, retractions=3, liars=((3, Lies.FORK), (9, Lies.BOAST)))))


def test_a_swarm_lives_on_without_those_gone_for_ever() -> None:
    weather = replace(STORM, crash=0.6, gone=0.5, polite=0.0)
    assert_sound(simulate_seeds(seeds_plan(2, weather=weather)))


def test_one_seed_is_one_story() -> None:
    first, second = seeds_drill(5), seeds_drill(5)
    assert replace(first, wall_s=0.0) == replace(second, wall_s=0.0)
    assert seeds_drill(7).digest != first.digest


# Stories ------------------------------------------------------------------------------------------


def test_two_halves_that_both_trained_are_one_swarm_when_they_meet() -> None:
    swarm = Watched(seeds_plan(0, weather=FAIR, halves_s=29.9, topology=Topology("ring", 8)))
    swarm.note_at(29.8)
    assert_sound(swarm.run())
    assert [len(counts) for counts in swarm.counts] == [4] * 8  # nobody knew more than its half
    assert all(count > 5 for counts in swarm.counts for count in counts.values())
    assert len(swarm.ends()) == 1
    union = [one for life in swarm.lives for one in feeds_of(life) if one.origin == life.disk.origin]
    assert len(union) == 8
    assert swarm.lives[5].replica.weights == Ledger(RECORDS).from_scratch(union)


@pytest.mark.parametrize("seed", range(4))
def test_a_fork_is_void_everywhere_and_the_liar_makes_no_more_rounds(seed: int) -> None:
    swarm = Watched(seeds_plan(seed, weather=FAIR, liars=((3, Lies.FORK),)))
    assert_sound(swarm.run())
    told = {(i, fact.peer, fact.forked) for i, fact in swarm.facts if isinstance(fact, Voided)}
    assert told == {(i, "p0003", True) for i in range(8)}
    assert swarm.lives[3].core.phase == "idle"
    assert len(swarm.ends()) == 1


@pytest.mark.parametrize("lies", [Lies.GARBAGE, Lies.FORGE, Lies.BOAST])
def test_liars_change_nothing_and_delay_nobody(lies: Lies) -> None:
    honest = simulate_seeds(seeds_plan(1, weather=FAIR))
    swarm = Watched(seeds_plan(1, weather=FAIR, liars=((2, lies), (6, lies))))
    outcome = swarm.run()
    assert_sound(outcome)
    assert not any(isinstance(fact, Voided) for _, fact in swarm.facts)
    assert outcome.rounds_min >= honest.rounds_min - 1


def test_what_is_retracted_in_a_storm_is_in_no_model() -> None:
    swarm = Watched(seeds_plan(4, retractions=6))
    assert_sound(swarm.run())
    held = list(feeds_of(swarm.lives[0]))
    voided = [one for one in held if one.closed is not None]
    assert voided
    ledger = Ledger(RECORDS)
    counting = 0
    for one in held:  # record by record, and not by the code that is judged
        for seq in range((one.count - 1) * RECORDS):
            if one.closed is None or seq < one.closed:
                batch, place = one.batches[1 + seq // RECORDS], seq % RECORDS
                counting += ledger.prefix(batch, place + 1) - ledger.prefix(batch, place)
    assert swarm.lives[0].replica.weights == counting


def test_a_thousand_records_retracted_in_mid_run_leave_the_model_of_the_others() -> None:
    records = 200
    swarm = Watched(seeds_plan(4, weather=replace(FAIR, loss=0.2), records=records))
    swarm.void_at(25.0, target=3)
    assert_sound(swarm.run())
    (liar,) = [one for one in feeds_of(swarm.lives[0]) if one.name == "p0003"]
    assert (liar.closed, liar.count) == (0, 1)
    assert len(swarm.published(liar.origin)) * records > 1000
    assert len(swarm.ends()) == 1
    honest = [one for one in feeds_of(swarm.lives[5]) if one.name != "p0003"]
    assert len(honest) == 7
    assert all(one.count > 5 for one in honest)
    assert swarm.lives[6].replica.weights == Ledger(records).from_scratch(honest)


def test_a_swarm_that_has_made_its_rounds_leaves_with_one_model() -> None:
    pacing = replace(PACING, rounds_max=5)
    swarm = Watched(seeds_plan(1, weather=FAIR, pacing=pacing, storm_s=60.0))
    outcome = swarm.run()
    assert outcome.safe
    assert all(life.left for life in swarm.lives)
    assert outcome.virtual_s < 60.0
    assert len(swarm.ends()) == 1
    assert feeds_of(swarm.lives[0]).records == 8 * 5 * RECORDS


def test_an_idle_swarm_says_a_few_bytes_in_each_beat() -> None:
    swarm = Watched(seeds_plan(1, weather=FAIR, storm_s=20.0, calm_s=60.0, rest_s=50.0))
    assert_sound(swarm.run())
    directed_links = 8 * 3
    spoken = sum(size_bytes for at, size_bytes in swarm.spoken if at >= 40.0)
    assert 0 < spoken <= 8 * directed_links * 40.0  # a digest of 16 bytes in each two seconds


def test_a_retraction_is_as_if_the_records_had_never_been_heard() -> None:
    ledger = Ledger(RECORDS)
    with_liar, without = Tally(ledger, key("me")), Tally(ledger, key("me"))
    theirs, ours = _feed("b", 9), _feed("c", 5)
    with_liar.fold(Fold(1, (*theirs[:5], *ours), ()))
    with_liar.fold(Fold(2, theirs[5:], ((key("b"), RECORDS + 1),)))
    without.fold(Fold(1, (*ours, theirs[0]), ()))
    assert with_liar.weights == without.weights + ledger.prefix(theirs[1], 1)
    with_liar.fold(Fold(3, (), ((key("b"), 0),)))
    assert with_liar.weights == sum(ledger.prefix(one, RECORDS) for one in ours)


def _feed(name: str, count: int) -> tuple[Batch, ...]:
    return tuple(signed(Batch(key(name), n, n, f"{n:0{RECORDS}}".encode(), b"")) for n in range(1, count))


def test_a_tally_exports_any_cut(tmp_path: Path) -> None:
    ledger = Ledger(RECORDS)
    now, then = Tally(ledger, key("me")), Tally(ledger, key("me"))
    theirs = _feed("b", 9)
    now.fold(Fold(1, theirs, ()))
    then.fold(Fold(1, theirs[:3], ()))
    now.export({key("b"): 4})(tmp_path / "cut")
    then.export()(tmp_path / "whole")
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    now.export()(tmp_path / "whole")
    assert (tmp_path / "cut").read_bytes() != (tmp_path / "whole").read_bytes()


def test_the_command_line_runs_seeds() -> None:
    steps: list[None] = []
    result = run_sim(
        peers=6,
        seeds=range(2),
        storm_s=10.0,
        calm_s=20.0,
        weather=STORM,
        topology="ring",
        options={},
        task="quadratic",
        step=lambda: steps.append(None),
        exchange="seeds",
    )
    assert len(steps) == 2
    assert (result["violations"], result["stalled_seeds"], result["seeds"]) == (0, [], 2)
    assert result["rounds_min"] > 0


# What breaks is found -----------------------------------------------------------------------------


def _forget_forks(_self: Feeds, *_: object) -> Judgement:
    return Judgement.KNOWN


def _take_again(self: Feeds) -> tuple[tuple[Batch, ...], tuple[()], tuple[()]]:
    return tuple(one for feed in self for one in feed.batches[1:]), (), ()


_take = Feeds.take


def _take_no_closings(self: Feeds) -> tuple[tuple[Batch, ...], tuple[()], tuple[Origin, ...]]:
    batches, _, dropped = _take(self)
    return batches, (), dropped


def _never_sync(self: Disk, *entries: object, sync: bool = False) -> None:
    self.entries += entries  # type: ignore[arg-type]  # batches and rulings


def _retract_nothing(self: Feeds, *_: object) -> Judgement:
    return Judgement.KNOWN


_on_retraction = Feeds._on_retraction  # pyright: ignore[reportPrivateUsage]: broken below


def _retract_all(self: Feeds, retraction: Retraction, trusted: bool) -> Judgement:
    return _on_retraction(self, replace(retraction, from_seq=0), True)


def _say_nothing(*_: object) -> list[Effect]:
    return []


BREAKS: dict[str, tuple[type, str, Callable[..., object], dict[str, object], str]] = {
    "forks are ignored": (Feeds, "_fork", _forget_forks, {"liars": ((3, Lies.FORK),)}, "different sets"),
    "batches are folded twice": (Feeds, "take", _take_again, {}, "folds batch 1 of"),
    "closings are not told": (Feeds, "take", _take_no_closings, {"retractions": 6}, "other weights than its feeds"),
    "retractions are ignored": (Feeds, "_on_retraction", _retract_nothing, {"retractions": 2}, "and goes on to"),
    "retractions void all": (Feeds, "_on_retraction", _retract_all, {"retractions": 2}, "which nobody decided"),
    # In time, it would hear of its own feed from its neighbours, and go on from there.
    "our own log is forgotten": (Disk, "append", _never_sync, {"pacing": HASTY, "weather": TORN}, "a second time"),
    "losses are never repaired": (Rumors, "_on_have", _say_nothing, {}, "different sets"),
    "gossip is never flooded nor repaired": (Rumors, "_on_rumor", _say_nothing, {}, "different sets"),
    "vectors are not answered": (Rumors, "_answer", _say_nothing, {}, "different sets"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    owner, method, broken, options, complaint = BREAKS[name]
    monkeypatch.setattr(owner, method, broken)
    found: list[str] = []
    for seed in range(6):
        plan = seeds_plan(seed, **{"weather": CRASHES, **options})  # type: ignore[arg-type]  # as its arguments are
        found += simulate_seeds(plan).violations
        if any(complaint in violation for violation in found):
            return
    raise AssertionError(found[:5])


def test_a_peer_that_waits_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probing, "_on_deadline", _say_nothing)
    weather = replace(STORM, crash=0.5, gone=0.5)
    assert not all(simulate_seeds(seeds_plan(seed, weather=weather, shared=True)).live for seed in range(3))


def judge(*effects: Effect | None) -> tuple[str, ...]:
    """The violations of a life; None answers the running job."""
    book = Book(Ledger(4))
    referee = SeedsReferee("me:1", fresh((B,)), frozenset({B}), book)
    for effect in effects:
        if effect is None:
            referee.answered()
        else:
            referee.asked(effect)
            if isinstance(effect, Sign):
                referee.published(effect.batch)
    return tuple(book.violations)


@pytest.mark.parametrize(
    ("effects", "complaint"),
    [
        ([Train(3), Train(4)], "while Train is running"),
        ([Sign(batch("me", 1)), None, Train(1)], "trains round 1 after publishing round 1"),
        ([Sign(batch("me", 1)), None, Sign(batch("me", 1, 2))], "a second time"),
        ([Sign(batch("me", 2)), None, Sign(batch("me", 1))], "publishes round 1 after round 2"),
        ([Fold(1, (batch("b", 2),), ())], "folds batch 2 of"),
        ([Fold(1, (batch("b", 1),), ()), None, Fold(2, (batch("b", 1),), ())], "folds batch 1 of"),
        ([Fold(1, (), ((key("b"), 1),)), None, Fold(2, (), ((key("b"), 2),))], "closes"),
        ([Send(Z, Leave())], "sends to z, no neighbour"),  # type: ignore[arg-type]  # whatever it says
        ([Leave(), Audit(b"")], "asks for Audit after Leave"),
    ],
)
def test_referee_objects(effects: list[Effect | None], complaint: str) -> None:
    violations = judge(*effects)
    assert len(violations) == 1
    assert complaint in violations[0]


def test_referee_compares_weights_from_scratch() -> None:
    book = Book(Ledger(4))
    peer = fresh((B,))
    referee = SeedsReferee("me:1", peer, frozenset({B}), book)
    assert peer.feeds is not None
    for one in (birth("b"), batch("b", 1)):
        peer.feeds.accept(one)
    referee.asked(Fold(1, (batch("b", 1),), ()))
    referee.folded(Ledger(4).prefix(batch("b", 1), 4))
    assert book.violations == []
    referee.folded(Ledger(4).prefix(batch("b", 1), 3))
    assert book.violations == ["me:1 has other weights than its feeds give from scratch"]


def test_referee_accepts_an_ordinary_life() -> None:
    assert judge(Sign(birth("me")), None, Train(1), None, Train(1), None, Sign(batch("me", 1)), None, Leave()) == ()
    assert PeerId("me") == "me"
