"""What a record measures, against exact gradients; dropout, scores, ferret, pro sampling, and that it all learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from murmurate.kernels import noise
from murmurate.peer import config
from murmurate.peer.errors import ConfigError
from murmurate.peer.lab.together import begin, origin_of, together
from murmurate.peer.learning.flat import FlatModel
from murmurate.peer.learning.optimizers import Sgd
from murmurate.peer.learning.prober import Prober, make_prober
from murmurate.peer.learning.probes import (
    PROBES,
    Objective,
    Probe,
    Reading,
    Step,
    conservative,
    find_probe,
    forward,
    sign,
    spsa,
)
from murmurate.peer.learning.replica import make_weights
from murmurate.peer.learning.tasks import Task, make_task

from .seeds_inside import Normed
from .seeds_peers import DROPOUT, Bowl, config_of, fold, made, prober_of

SIGNS = 5
NAMES = "abcd"


def directions(count: int) -> noise.Directions:
    return noise.Directions.of_key(9, np.arange(count, dtype=np.uint64))


class Curved(Bowl):
    """In float64, and not quadratic, so that finite differences and derivatives differ."""

    def model(self) -> nn.Module:
        return super().model().double()

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        inputs = torch.linspace(-1, 1, 12, dtype=next(model.parameters()).dtype).view(4, 3)
        return (model(inputs) - batch.double().mean() / 100).square().mean().exp()


class Plain:
    """Weights in any dtype at their home or anywhere beside it, without a grid and without a ledger."""

    def __init__(self, model: FlatModel) -> None:
        self._flat_D, self._home_D = model.flat_D, model.flat_D.clone()

    def shift(self, direction: noise.Direction, epsilon: float) -> None:
        self._flat_D.copy_(self._home_D + epsilon * self.z(direction))

    def settle(self) -> None:
        self._flat_D.copy_(self._home_D)

    def length(self, epsilon: float) -> float:
        return epsilon

    def write(self, out_D: Tensor, direction: noise.Direction) -> None:
        out_D.copy_(self.z(direction))

    def z(self, direction: noise.Direction) -> Tensor:
        out_D = torch.zeros(self._flat_D.numel())
        noise.perturb(out_D, out_D, direction, 1.0, SIGNS)
        return out_D.to(self._flat_D.dtype)

    def move(self, changes: Any) -> None:
        raise NotImplementedError

    def project(self, update_D: Tensor, directions: noise.Directions) -> Any:
        raise NotImplementedError

    def steps(self) -> Any:
        raise NotImplementedError

    def put(self, steps_D: Any) -> None:
        raise NotImplementedError


def objective_of(task: Task, epsilon: float = 1e-5) -> tuple[Objective, FlatModel, Plain]:
    model = FlatModel(task.model(), gradients=True)
    plain = Plain(model)
    return Objective(config.Seeds(epsilon=epsilon), task, model, plain, 2.0**-12), model, plain


def slopes_of(task: Task, model: FlatModel, plain: Plain, step: Step) -> list[float]:
    """By automatic differentiation."""
    plain.settle()
    model.grad_D.zero_()
    torch.manual_seed(step.seed)
    task.loss(model.module, step.batch).backward()
    return [float(model.grad_D @ plain.z(direction)) for direction in step.directions]


def test_spsa_is_the_directional_derivative() -> None:
    task = Curved()
    objective, model, plain = objective_of(task)
    step = Step(torch.arange(4), 1, directions(8), 0.1)
    exact = slopes_of(task, model, plain, step)
    found = spsa(objective, step)
    np.testing.assert_allclose(found.slopes, exact, rtol=1e-6, atol=1e-8)
    assert len(found.losses) == 16
    assert sign(objective, step).slopes == [math.copysign(1, slope) for slope in exact]


def test_forward_is_the_inner_product_with_the_gradient() -> None:
    for task in (Curved(), Normed(), make_task(config_of(task=DROPOUT))):
        objective, model, plain = objective_of(task)
        step = Step(task.batch(torch.arange(4)), 1, directions(4), 0.1)
        model.module.train()
        exact = slopes_of(task, model, plain, step)
        assert find_probe(config.Seeds(probe="forward"), task) is forward
        found = forward(objective, step)
        np.testing.assert_allclose(found.slopes, exact, rtol=1e-3, atol=1e-5)


def test_both_passes_drop_the_same_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the units are dropped: with another draw in each pass the quotient would be noise over epsilon."""
    task = make_task(config_of(task=DROPOUT))
    first = task.model
    # In float64: a normalisation of eight small numbers is so steep that no step in float32 is short enough.
    monkeypatch.setattr(task, "model", lambda: first().double())
    objective, model, plain = objective_of(task, epsilon=1e-7)
    model.module.train()
    step = Step(task.batch(torch.arange(4)), 1, directions(4), 0.1)
    found = spsa(objective, step).slopes
    np.testing.assert_allclose(found, slopes_of(task, model, plain, step), rtol=1e-4, atol=1e-5)
    other = spsa(objective, Step(step.batch, 2, step.directions, 0.1)).slopes
    assert np.abs(np.subtract(found, other)).max() > 0.01, "dropout does nothing here"


def test_passes_run_in_training_mode() -> None:
    modes: list[bool] = []

    class Watched(Bowl):
        def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
            modes.append(model.training)
            return super().loss(model, batch)

    prober = prober_of(task=Watched())
    fold(prober, made("a", 1, 1, prober.train(1).payload), round=1)  # evaluates
    prober.train(2)
    assert modes
    assert all(modes)


@pytest.mark.parametrize(("along", "expected"), [(0.0, 0.0), (1.0, 1.0), (-1.0, -1.0)])
def test_conservative_keeps_what_is_best_on_the_batch(along: float, expected: float) -> None:
    """Losses made up so that staying, the step or the opposite one is best."""
    objective, _, plain = objective_of(Bowl(), epsilon=1e-3)
    where = [0.0]
    shift, settle = plain.shift, plain.settle

    def shifted(direction: noise.Direction, epsilon: float) -> None:
        where[0] = epsilon
        shift(direction, epsilon)

    def settled() -> None:
        where[0] = 0.0
        settle()

    plain.shift, plain.settle = shifted, settled
    rate, slope = 2.0**-4, 1.0

    def here(step: Step) -> float:
        at = where[0]
        return slope * at if abs(at) <= 1e-3 else (at / rate + along) ** 2 - 2 * bool(along)

    objective.here = here
    found = conservative(objective, Step(None, 0, directions(1), rate))
    assert found.slopes == pytest.approx([expected * slope])


def test_conservative_never_makes_the_batch_worse() -> None:
    """With a step far too long a plain probe climbs; this one stays, or finds something better."""
    for kind in ("spsa", "conservative"):
        prober = prober_of(names="a", seeds={"probe": kind}, local={"lr": 0.1, "steps": 30})
        steps: list[tuple[float, float]] = []
        prober._probe = _watched(PROBES[kind], steps)  # pyright: ignore[reportPrivateUsage] (to see every step)
        prober.train(1)
        climbs = [after > before * (1 + 1e-4) for before, after in steps]
        assert len(climbs) == 29
        assert any(climbs) == (kind == "spsa")
        assert any(after < before for before, after in steps)


def _watched(probe: Probe, steps: list[tuple[float, float]]) -> Probe:
    """Writes down the loss of each step's batch before and after that step, the last one's excepted."""
    last: list[tuple[Step, float]] = []

    def watched(objective: Objective, step: Step) -> Reading:
        if last:
            before, value = last.pop()
            steps.append((value, objective.home(before)))
        last.append((step, objective.home(step)))
        return probe(objective, step)

    return watched


# Ferret ----------------------------------------------------------------------------------------------


def test_ferret_brings_an_update_back_in_expectation() -> None:
    """Projections on K directions, added up: the update, and an error that shrinks as 1 / sqrt(K)."""
    tables: dict[str, Any] = {"local": {"steps": 4, "lr": 0.05, "options": {"momentum": 0.5}}}
    errors: dict[int, float] = {}
    for probes in (64, 1024):
        seeds = {"probe": "ferret", "directions": "shared", "probes": probes, "unit_log2": -24}
        prober = prober_of(task=Bowl(), names="a", seeds=seeds, **tables)
        before_D = _weights(prober).clone()
        update_D = _first_order(before_D, steps=4)
        fold(prober, made("a", 1, 1, prober.train(1).payload), round=1)
        moved_D = before_D - _weights(prober)
        errors[probes] = float((moved_D - update_D).norm() / update_D.norm())
        assert prober.figures()["loss"] > 0
    size = math.sqrt(before_D.numel())
    assert errors[64] < 1.6 * size / math.sqrt(4 * 64)
    assert errors[1024] < 1.6 * size / math.sqrt(4 * 1024) < 0.2


def _weights(prober: Prober) -> Tensor:
    prober.weights_digest()  # settles
    return prober._model.flat_D  # pyright: ignore[reportPrivateUsage] (what it learns)


def _first_order(start_D: Tensor, steps: int) -> Tensor:
    """What four steps of SGD with momentum change, by hand, on the same batches."""
    prober = prober_of(task=Bowl(), names="a", local={"steps": steps})
    task, batches = Bowl(), prober._batches  # pyright: ignore[reportPrivateUsage] (the same order)
    model = FlatModel(task.model())
    optimizer = Sgd(model, lr=0.05, momentum=0.5)
    for indices_B in batches.of(0, steps):
        model.grad_D.zero_()
        task.loss(model.module, task.batch(indices_B)).backward()
        optimizer.step()
    return start_D - model.flat_D


def test_ferret_projects_within_parts() -> None:
    seeds = {"probe": "ferret", "directions": "shared", "probes": 1024, "unit_log2": -24, "parts": 2}
    prober = prober_of(
        task=Bowl(), names="a", seeds=seeds, local={"steps": 4, "lr": 0.05, "options": {"momentum": 0.5}}
    )
    before_D = _weights(prober).clone()
    update_D = _first_order(before_D, steps=4)
    fold(prober, made("a", 1, 1, prober.train(1).payload), round=1)
    moved_D = before_D - _weights(prober)
    assert float((moved_D - update_D).norm() / update_D.norm()) < 0.2


# Pro sampling ----------------------------------------------------------------------------------------


def test_pro_sampling_prefers_what_mattered() -> None:
    seeds = {"directions": "pool", "sampling": "pro", "pool": 4, "probes": 256}
    prober = prober_of(task=Bowl(), seeds=seeds, local={"steps": 1})
    even = np.bincount(_ids(prober, 1), minlength=4)
    assert even.min() > 40
    scalars = bytes(noise.encode(np.repeat([8.0, 8.0, 8.0, 800.0], 64)))
    fold(prober, made("b", 1, 1, scalars + np.repeat([0, 1, 2, 3], 64).astype("<u2").tobytes()))
    found = np.bincount(_ids(prober, 1), minlength=4)
    odds = np.exp([0, 0, 0, 1])
    np.testing.assert_allclose(found / 256, odds / odds.sum(), atol=0.1)


def _ids(prober: Prober, round: int) -> Any:
    return np.frombuffer(bytes(prober.train(round).payload)[256:], "<u2")


# What cannot be measured -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ({"probe": "spsaa"}, r"seeds.probe = 'spsaa': unknown; known are spsa, sign, conservative, forward, ferret"),
        ({"objective": "score"}, r"the task has no `score\(model, batch\) -> float`"),
    ],
)
def test_what_cannot_be_measured_is_refused(seeds: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Prober(config_of(seeds=seeds), Bowl())


def test_a_model_without_forward_derivatives_is_refused() -> None:
    class Closed(Bowl):
        def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
            rows = next(iter(model.parameters()))
            return super().loss(model, batch) + torch.cdist(rows, rows + 1).sum()

    prober = prober_of(task=Closed(), seeds={"probe": "forward"})
    with pytest.raises(ConfigError, match=r"seeds\.probe = 'forward': the model cannot be differentiated so"):
        prober.train(1)


# It learns -------------------------------------------------------------------------------------------


def swarm(liars: int = 0, **tables: Any) -> list[config.Config]:
    """Four peers on the digits; the last ones lie."""
    local = {"steps": 1, "batch_size": 32, **tables.pop("local", {})}
    honest = len(NAMES) - liars
    return [
        config_of(me, NAMES, local=local, **tables, **({"attack": {"name": "max_flip"}} if i >= honest else {}))
        for i, me in enumerate(NAMES)
    ]


LEARNERS: dict[str, tuple[int, dict[str, Any]]] = {
    "private": (40, {"local": {"lr": 0.06}, "seeds": {"probes": 16}}),
    "pool": (40, {"local": {"lr": 0.06}, "seeds": {"probes": 16, "directions": "pool"}}),
    "shared": (80, {"local": {"lr": 0.1}, "seeds": {"probes": 32, "directions": "shared"}}),
    "momentum": (40, {"local": {"lr": 0.1}, "seeds": {"probes": 16, "momentum": 0.8}}),
    "lean": (40, {"local": {"lr": 0.06}, "seeds": {"probes": 16, "memory": "lean"}}),
    "sign": (40, {"local": {"lr": 0.04}, "seeds": {"probes": 16, "probe": "sign"}}),
    "conservative": (40, {"local": {"lr": 0.06}, "seeds": {"probes": 16, "probe": "conservative"}}),
    "forward": (40, {"local": {"lr": 0.06}, "seeds": {"probes": 16, "probe": "forward"}}),
    "ferret": (
        60,
        {"local": {"lr": 0.02, "steps": 4}, "seeds": {"probes": 64, "probe": "ferret", "directions": "shared"}},
    ),
    "score": (80, {"local": {"lr": 0.02}, "seeds": {"probes": 16, "objective": "score", "epsilon": 0.03}}),
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_it_learns(kind: str) -> None:
    """Far above the 10 % of chance, and the same weights everywhere (`together` checks that)."""
    last, tables = LEARNERS[kind]
    found = together(swarm(**tables, rounds={"eval_every": last}), last)[-1]
    assert found["accuracy"] > 0.3, f"{kind}: {found}"
    assert found["test_loss"] < 2.28 < math.log(10)


def test_robust_rules_bear_maximal_lies_and_a_sum_does_not() -> None:
    """One of four sends the largest scalars of the wrong sign."""
    losses: dict[str, float] = {}
    for rule in ("median", "nna", "sum"):
        seeds = {"probes": 32, "directions": "shared", "rule": rule}
        f = 0 if rule == "sum" else 1
        curve = together(swarm(1, local={"lr": 0.1}, seeds=seeds, mixing={"f": f}, rounds={"eval_every": 30}), 30)
        losses[rule] = curve[-1]["test_loss"]
    assert max(losses["median"], losses["nna"]) < 2.29 < math.log(10)
    assert losses["sum"] > 10


def test_replicas_of_two_swarms_do_not_mix() -> None:
    with pytest.raises(ConfigError, match="not of one swarm"):
        begin([config_of("a"), config_of("b", seeds={"parts": 2})])


def test_a_weight_keeper_is_found_by_name() -> None:
    prober = make_prober(config_of())
    prober.begin(bytes(32), origin_of("a"))
    model = FlatModel(Bowl().model(), gradients=False)
    for memory in ("exact", "lean"):
        assert make_weights(model, -12, 1, memory, SIGNS).length(2.0**-10) == 2.0**-10
