"""The mixing rules: each against its paper's formula, and what it promises whatever the neighbours send."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from murmurate.kernels import mixing as kernels
from murmurate.kernels.mixing import reference
from murmurate.peer.build import build_manifest, build_topology
from murmurate.peer.config import Mixing, parse
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.make import make_trainer
from murmurate.peer.learning.mixing import RULES, Mixer, keeping_variance, make_mixer

from . import mixing_exact as exact
from .mixing_exact import Floats

BEARS_NONE = ("mean", "flag")
ROBUST = [name for name in RULES if name not in BEARS_NONE]
BEFORES = ("", "nnm", "bucketing")


def mixer_of(rule: str, degree: int, **values: Any) -> Mixer:
    return make_mixer(Mixing(rule=rule, **values), degree)


def models(K: int, D: int, seed: int, apart: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Ours, theirs and weights that leave us something."""
    generator = torch.Generator().manual_seed(seed)
    common_D = torch.randn(D, generator=generator, dtype=torch.float64)
    X_ND = common_D + apart * torch.randn(K + 1, D, generator=generator, dtype=torch.float64)
    weights_K = torch.rand(K, generator=generator, dtype=torch.float64) / (K + 1)
    return [X_ND[0].to(dtype), X_ND[1:].to(dtype), weights_K.to(dtype)]


def seen(before: str, f: int, mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> tuple[Floats, Floats]:
    """What the rule sees: points and their weights."""
    X_ND = torch.cat([mine_D[None], theirs_KD]).double().numpy()
    weights_N = np.array([1 - weights_K.double().sum().item(), *weights_K.tolist()])
    if before == "nnm":
        return exact.nnm(X_ND, f), weights_N
    if before == "bucketing":
        sums = [weights_N[at : at + 2].sum() for at in range(1, len(weights_N), 2)]
        return exact.bucketing(X_ND, 2), np.array([weights_N[0], *sums])
    return X_ND, weights_N


def assert_is(rule: str, mixed_D: Floats, X_MD: Floats, weights_M: Floats, f: int, atol: float) -> None:
    """`mixed_D` is what the formula gives for these points; where formulas leave a choice, one of it."""
    if rule == "geometric_median":  # in one dimension an interval may be the median, so the sums are compared
        least = exact.sum_of_distances(X_MD, exact.geometric_median(X_MD, weights_M, f))
        assert exact.sum_of_distances(X_MD, mixed_D) <= least * (1 + 1e-6) + 1e-5
    elif rule in exact.CENTRES:  # two values may be equally far from the centre, but for rounding
        for value, column in zip(mixed_D.tolist(), X_MD.T.tolist(), strict=True):
            values = sorted(column)
            choices = exact.choices_around(values, exact.CENTRES[rule](values, f), len(values) - f, atol)
            assert min(abs(value - choice) for choice in choices) <= atol
    else:
        np.testing.assert_allclose(mixed_D, exact.RULES[rule](X_MD, weights_M, f), rtol=0, atol=atol)


def works(rule: str, degree: int, before: str, f: int) -> bool:
    try:
        mixer_of(rule, degree, before=before, f=f)
    except ConfigError:
        return False
    return True


sizes = st.tuples(st.integers(0, 8), st.sampled_from([1, 2, 3, 7, 33]), st.integers(0, 10**6))


# Formulas --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", BEFORES)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25)
@given(size=sizes, f=st.integers(0, 4), apart=st.sampled_from([1.0, 1e-3]))
def test_a_rule_is_its_formula(rule: str, before: str, size: tuple[int, int, int], f: int, apart: float) -> None:
    K, D, seed = size
    given_ = models(K, D, seed, apart)
    if not works(rule, K, before, f):
        f = 0
        before = "" if rule == "mean" or before == "nnm" else before
    if not works(rule, K, before, f):
        return
    mixed_D = mixer_of(rule, K, before=before, f=f)(*given_).numpy()
    assert_is(rule, mixed_D, *seen(before, f, *given_), f, atol=(1e-6 if rule == "flag" else 1e-9) * apart)


def test_options_reach_the_formulas() -> None:
    given_ = models(7, 9, seed=1)
    X_ND = torch.cat([given_[0][None], given_[1]]).numpy()
    weights_N = np.array([1 - given_[2].sum().item(), *given_[2].tolist()])

    def mixed(rule: str, f: int, **options: float) -> Floats:
        return mixer_of(rule, 7, f=f, options=options)(*given_).numpy()

    scores = exact.krum_scores(X_ND, 3, less=1)
    np.testing.assert_allclose(mixed("krum", 3, less=1), X_ND[scores.index(min(scores))])
    best = sorted(range(8), key=lambda i: exact.krum_scores(X_ND, 2)[i])[:3]
    np.testing.assert_allclose(mixed("multi_krum", 2, keep=3), X_ND[best].mean(0))
    clipped_D = exact.centred_clipping(X_ND, weights_N, 1, radius=0.7, steps=5)
    np.testing.assert_allclose(mixed("centred_clipping", 1, radius=0.7, steps=5), clipped_D)
    clipped_D = exact.self_centred_clipping(X_ND, weights_N, 1, radius=0.7)
    np.testing.assert_allclose(mixed("self_centred_clipping", 1, radius=0.7), clipped_D)
    near_D = exact.geometric_median(X_ND, weights_N, 1, nu=2.0)
    np.testing.assert_allclose(mixed("geometric_median", 1, smoothing=2.0), near_D, atol=1e-9)
    np.testing.assert_allclose(mixed("flag", 0, rank=7), X_ND.mean(0))  # nothing is projected away
    np.testing.assert_allclose(mixed("flag", 0, steps=1), exact.flag(X_ND, weights_N, 0, steps=1), atol=1e-9)
    exact_D = exact.RULES["median"](exact.bucketing(X_ND, 3), weights_N, 1)
    bucketed = mixer_of("median", 7, f=1, before="bucketing", options={"bucket_size": 3})
    np.testing.assert_allclose(bucketed(*given_).numpy(), exact_D)


# Order and ties --------------------------------------------------------------------------------------


CONTINUOUS = ("geometric_median", "centred_clipping", "self_centred_clipping", "trimmed_mean", "median")


@pytest.mark.parametrize(("rule", "before"), [*((rule, "") for rule in RULES), *((rule, "nnm") for rule in CONTINUOUS)])
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(7)))
def test_the_order_of_the_neighbours_does_not_matter(rule: str, before: str, seed: int, order: list[int]) -> None:
    """But for ties, which NNM makes many of: there the others choose the first."""
    mixer = mixer_of(rule, 7, f=0 if rule in BEARS_NONE else 2, before=before)
    mine_D, theirs_KD, weights_K = models(7, 11, seed)
    mixed_D, again_D = mixer(mine_D, theirs_KD, weights_K), mixer(mine_D, theirs_KD[order], weights_K[order])
    torch.testing.assert_close(mixed_D, again_D, rtol=0, atol=1e-6)


def test_ties_go_to_the_first_row() -> None:
    mine_D, weights_K = torch.zeros(1), torch.full((4,), 0.2)
    theirs_KD = torch.tensor([[1.0], [-1], [1], [-1]])
    expected = {
        "nna": (0 + 1 - 1 + 1) / 4,
        "krum": 1.0,
        "multi_krum": 0.0,  # ours is the loneliest
        "mda": (0 + 1 - 1 + 1) / 4,
        "mva": (0 + 1 - 1 + 1) / 4,
        "meamed": (-1 - 1 + 0 + 1) / 4,  # of equally far values the low one
        "phocas": (-1 - 1 + 0 + 1) / 4,
    }
    for rule, value in expected.items():
        assert mixer_of(rule, 4, f=1)(mine_D, theirs_KD, weights_K).tolist() == [value], rule
    pair_KD = torch.tensor([[5.0], [5.0]])
    assert mixer_of("krum", 2)(mine_D, pair_KD, weights_K[:2]).tolist() == [5]


@settings(max_examples=300)
@given(values=st.lists(st.integers(-4, 4), min_size=1, max_size=9), data=st.data(), width=st.sampled_from([1, 2, 4]))
def test_the_values_around_a_centre_are_the_nearest(values: list[int], data: st.DataObject, width: int) -> None:
    """By definition and in exact arithmetic: none that is left out is nearer than one that is kept, and of a low and a
    high one that are equally far the low one is kept. Equal values are common: NNM makes them."""
    n = len(values)
    width = min(width, 1 << (n.bit_length() - 1))  # a power of two, so that the centre does not round
    first = data.draw(st.integers(0, n - width))
    keep = data.draw(st.integers(1, n))
    centre = Fraction(sum(sorted(values)[first : first + width]), width)
    kept = sorted(values, key=lambda value: (abs(value - centre), value))[:keep]
    mine_D, *theirs = torch.tensor(values, dtype=torch.float64)[:, None]
    theirs_KD = torch.stack(theirs) if theirs else mine_D.new_empty(0, 1)
    for form in (kernels, reference):
        found_D = form.around(mine_D, theirs_KD, first, first + width, keep)
        assert abs(found_D.item() * keep - sum(kept)) < 1e-9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("before", BEFORES)
def test_equal_models_stay_as_they_are(rule: str, before: str) -> None:
    f = 0 if rule in BEARS_NONE else 1
    before = before if f else ""
    mine_D, _, weights_K = models(7, 21, seed=3, dtype=torch.float32)
    mixed_D = mixer_of(rule, 7, f=f, before=before)(mine_D, mine_D.expand(7, -1).clone(), weights_K)
    torch.testing.assert_close(mixed_D, mine_D, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", RULES)
def test_nearly_equal_models_are_told_apart(rule: str) -> None:
    """1e-3 apart in float32, where uncentred distances would be noise: as exact as their format allows."""
    f = 0 if rule in BEARS_NONE else 2
    for seed in range(5):
        given_ = models(8, 2000, seed, apart=1e-3, dtype=torch.float32)
        before = given_[0].clone(), given_[1].clone()
        mixed_D = mixer_of(rule, 8, f=f)(*given_)
        assert torch.equal(given_[0], before[0])
        assert torch.equal(given_[1], before[1])
        assert_is(rule, mixed_D.numpy().astype(np.float64), *seen("", f, *given_), f, atol=2e-6)


# Liars -----------------------------------------------------------------------------------------------

BOMBS = [math.nan, -math.nan, math.inf, -math.inf, 1e38, -3e38]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("before", BEFORES)
@settings(max_examples=40)
@given(data=st.data(), K=st.integers(0, 8), f=st.integers(0, 3))
def test_whatever_comes_the_model_stays_finite(rule: str, before: str, data: st.DataObject, K: int, f: int) -> None:
    """Any number of bombs, in all of a row or a part, with as many neighbours as there are."""
    f = 0 if rule in BEARS_NONE else f
    if not works(rule, 30, before, f):
        before = ""
    mine_D, theirs_KD, weights_K = models(K, 9, data.draw(st.integers(0, 99)), dtype=torch.float32)
    for row in range(K):
        if data.draw(st.booleans()):
            theirs_KD[row, data.draw(st.integers(0, 8)) :] = data.draw(st.sampled_from(BOMBS))
    mixed_D = mixer_of(rule, 30, before=before, f=f)(mine_D, theirs_KD, weights_K)
    assert mixed_D.isfinite().all()
    assert mixed_D.data_ptr() != mine_D.data_ptr()


@pytest.mark.parametrize("before", BEFORES)
@pytest.mark.parametrize("rule", RULES)
def test_rows_that_are_not_finite_are_left_out_and_count_as_liars(rule: str, before: str) -> None:
    """As if they had not come, and f were less by so many; their weight is ours."""
    f = 0 if rule in BEARS_NONE else 3
    before = before if f and "krum" not in rule else ""  # in its buckets there is no room for 3
    if rule in ("trimmed_mean", "median", "meamed", "phocas") and not before:
        return  # these trim single values instead: below
    mine_D, theirs_KD, weights_K = models(14, 9, seed=4)
    bombed_KD = theirs_KD.clone()
    bombed_KD[2, 3], bombed_KD[7] = math.nan, math.inf
    rest = [row for row in range(14) if row not in (2, 7)]
    mixed_D = mixer_of(rule, 14, before=before, f=f)(mine_D, bombed_KD, weights_K)
    expected_D = mixer_of(rule, 12, before=before if f > 2 else "", f=max(0, f - 2))(
        mine_D, theirs_KD[rest], weights_K[rest]
    )
    torch.testing.assert_close(mixed_D, expected_D)


@pytest.mark.parametrize("rule", ["trimmed_mean", "median", "meamed", "phocas"])
@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), bombs=st.lists(st.sampled_from(BOMBS), min_size=2, max_size=2))
def test_up_to_f_bombs_are_trimmed(rule: str, seed: int, bombs: list[float]) -> None:
    """What is left lies among the honest values, or as far out as they are apart."""
    mine_D, theirs_KD, weights_K = models(6, 9, seed, dtype=torch.float32)
    theirs_KD[1], theirs_KD[4] = bombs
    mixed_D = mixer_of(rule, 6, f=2)(mine_D, theirs_KD, weights_K)
    honest_HD = torch.cat([mine_D[None], theirs_KD[[0, 2, 3, 5]]])
    low_D, high_D = honest_HD.amin(0), honest_HD.amax(0)
    slack_D = (high_D - low_D) * (rule in ("meamed", "phocas")) + 1e-5
    assert (mixed_D >= low_D - slack_D).all()
    assert (mixed_D <= high_D + slack_D).all()


def honest_bound(rule: str, before: str, n: int, f: int, honest_HD: Tensor) -> float:
    """How far from our own vector (or the honest mean) the papers let f liars among n move the mixture at most."""
    centre_D = honest_HD.mean(0)
    radius = (honest_HD - centre_D).norm(dim=1).max().item()
    spread = (honest_HD[:, None] - honest_HD).norm(dim=2).max().item()
    if rule == "geometric_median":
        return 2 * (n - f) / (n - 2 * f) * radius
    if rule in ("centred_clipping", "self_centred_clipping"):
        return 8 * spread  # three steps, each no longer than the farthest honest vector is then
    # One of the kept is honest, and no kept one is farther from it than honest ones can be from each other.
    return (3 if rule.endswith("krum") else 2) * spread * math.sqrt(n)


@pytest.mark.parametrize("before", BEFORES)
@pytest.mark.parametrize("rule", ROBUST)
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), log10=st.floats(1, 12), alone=st.booleans())
def test_far_liars_move_no_rule_beyond_its_bound(rule: str, before: str, seed: int, log10: float, alone: bool) -> None:
    """f = 2 of 12 together at one place, or each at its own."""
    mine_D, theirs_KD, weights_K = models(11, 5, seed)
    liars = [3, 4]
    directions = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    theirs_KD[liars] = 10**log10 * (directions if alone else directions[:1])
    honest_HD = torch.cat([mine_D[None], theirs_KD[[row for row in range(11) if row not in liars]]])
    mixed_D = mixer_of(rule, 11, f=2, before=before)(mine_D, theirs_KD, weights_K)
    moved = (mixed_D - honest_HD.mean(0)).norm().item()
    assert moved <= honest_bound(rule, before, 7 if before == "bucketing" else 12, 2, honest_HD) + 1e-3


def test_a_mean_and_flag_are_moved_anywhere() -> None:
    """Why they are refused with f > 0."""
    mine_D, theirs_KD, weights_K = models(6, 50, seed=1)
    theirs_KD[2] = 1e9
    for rule in BEARS_NONE:
        assert mixer_of(rule, 6)(mine_D, theirs_KD, weights_K).norm() > 1e8


@pytest.mark.parametrize("before", BEFORES)
@pytest.mark.parametrize("rule", RULES)
def test_few_or_no_neighbours(rule: str, before: str) -> None:
    """Ours stays as it is where f cannot be borne any more; what starts from ours goes on, and never leaves it far."""
    f = 0 if rule in BEARS_NONE else 2
    before = before if f else ""
    mixer = mixer_of(rule, 20, f=f, before=before)
    for K in range(3 if f else 1):
        mine_D, theirs_KD, weights_K = models(K, 6, seed=K)
        assert torch.equal(mixer(mine_D, theirs_KD, weights_K), mine_D)
    mine_D, theirs_KD, weights_K = models(3, 6, seed=9)
    moved = not torch.equal(mixer(mine_D, theirs_KD, weights_K), mine_D)
    starts_from_ours = rule in ("nna", "centred_clipping", "self_centred_clipping")
    assert moved == (rule in BEARS_NONE or (starts_from_ours and before != "bucketing"))


# Start-up --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "degree", "words"),
    [
        ({"rule": "kurm"}, 9, "mixing.rule = 'kurm': unknown; known are mean, nna, krum"),
        ({"rule": "mean", "f": 1}, 9, "one liar is enough to move a mean"),
        ({"rule": "flag", "f": 1}, 9, "flag promises nothing against liars"),
        ({"rule": "median", "f": 2}, 3, "median needs more than 3 neighbours .* with 3; choose f <= 1 or a denser"),
        ({"rule": "krum", "f": 2}, 5, "krum needs more than 5 neighbours .* choose f <= 1 or a denser"),
        ({"rule": "krum", "f": 0}, 1, "krum needs more than 1 neighbours .* choose another rule or a denser"),
        ({"rule": "krum", "f": 2, "options": {"less": 1}}, 3, "needs more than 3"),
        ({"rule": "median", "f": 2, "before": "bucketing"}, 6, "bucketing before median needs more than 6"),
        ({"rule": "mda", "f": 10}, 40, "mixing.rule = 'mda': would try 1121099408 subsets of 41 vectors"),
        ({"rule": "median", "before": "nnm"}, 9, "mixing.before = 'nnm': is the plain mean with mixing.f = 0"),
        ({"rule": "mean", "before": "bucketing"}, 9, "mixing.before = 'bucketing': changes nothing before a mean"),
        ({"rule": "median", "f": 1, "keep_variance": True}, 9, "mixing.keep_variance: a liar's variance counts"),
        ({"rule": "median", "options": {"radius": 1.0}}, 9, "mixing.options.radius: unknown; median knows no options"),
        (
            {"rule": "krum", "options": {"radius": 1.0}, "before": "bucketing"},
            9,
            "options.radius: unknown; bucketing before krum knows less, bucket_size",
        ),
        ({"rule": "krum", "options": {"less": 3}}, 9, "mixing.options.less = 3: should be a whole number from 1 to 2"),
        ({"rule": "krum", "options": {"less": 1.5}}, 9, "mixing.options.less = 1.5: should be a whole number"),
        ({"rule": "krum", "options": {"less": True}}, 9, "mixing.options.less = True: should be a whole number"),
        ({"rule": "centred_clipping", "options": {"radius": -1.0}}, 9, "mixing.options.radius = -1.0: should be a num"),
        ({"rule": "centred_clipping", "options": {"radius": [1.0]}}, 9, r"options.radius = \[1.0\]: should be a num"),
    ],
)
def test_start_up_refuses(values: dict[str, Any], degree: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make_mixer(Mixing(**values), degree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("before", BEFORES)
@pytest.mark.parametrize("f", [1, 2, 3])
def test_the_smallest_neighbourhood_that_is_accepted_bears_f(rule: str, before: str, f: int) -> None:
    degree = next(degree for degree in range(40) if works(rule, degree, before, f))
    assert all(works(rule, more, before, f) for more in range(degree, 24))
    mine_D, theirs_KD, weights_K = models(degree, 4, seed=f)
    theirs_KD[-f:] = 1e9
    mixed_D = mixer_of(rule, degree, before=before, f=f)(mine_D, theirs_KD, weights_K)
    assert mixed_D.norm() < 1e3


def test_too_many_subsets_at_a_hub_leave_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = models(9, 5, seed=1)
    near = [0, *exact.nearest(torch.cat([given_[0][None], given_[1]]).numpy(), given_[0].numpy(), 6)[1:]]
    monkeypatch.setattr("murmurate.peer.learning.mixing.shares.SUBSETS_MAX", math.comb(6, 2))
    mixer = mixer_of("mda", 5, f=2)
    kept_KD = given_[1][[row - 1 for row in near[1:]]]
    torch.testing.assert_close(mixer(*given_), mixer(given_[0], kept_KD, given_[2][:5]))


def test_the_manifest_has_every_choice() -> None:
    def manifest(**mixing: Any) -> Any:
        config = parse({"name": "a", "peers": {"a": "host:1", "b": "host:2"}, "mixing": mixing})
        return build_manifest(config, build_topology(config), [], "seed:0")

    plain = manifest()
    for choice in (
        {"rule": "median"},
        {"before": "nnm"},
        {"options": {"radius": 1.0}},
        {"keep_variance": True},
    ):
        assert manifest(**choice).swarm_id != plain.swarm_id


def test_models_are_not_mixed_with_seeds() -> None:
    for mixing in ({"before": "nnm"}, {"options": {"radius": 1.0}}, {"keep_variance": True}):
        with pytest.raises(ConfigError, match=r"mixing.before, .options, .keep_variance: mix models"):
            parse({"name": "a", "peers": {"a": "host:1"}, "exchange": {"name": "seeds"}, "mixing": mixing})


# Variance --------------------------------------------------------------------------------------------


def test_variance_is_kept() -> None:
    sizes_L = [40, 1, 60]
    given_ = models(3, 101, seed=5)
    mixer = mixer_of("mean", 3)
    mixed_D = keeping_variance(mixer, sizes_L)(*given_)
    plain_D = mixer(*given_)
    weights_N = [1 - given_[2].sum().item(), *given_[2].tolist()]
    for piece in (slice(0, 40), slice(40, 41), slice(41, 101)):
        variances = [row_D[piece].var(correction=0).item() for row_D in (given_[0], *given_[1])]
        target = sum(w * v for w, v in zip(weights_N, variances, strict=True))
        average_D = plain_D[piece]
        exact_D = average_D.mean() + (average_D - average_D.mean()) * (
            math.sqrt(target / average_D.var(correction=0).item()) if target else 1
        )
        torch.testing.assert_close(mixed_D[piece], exact_D, rtol=1e-6, atol=1e-6)
    assert mixed_D[:40].var() > 1.2 * plain_D[:40].var()


def test_variance_of_equal_or_bad_models() -> None:
    mine_D, theirs_KD, weights_K = models(3, 30, seed=5, dtype=torch.float32)
    mixer = keeping_variance(mixer_of("mean", 3), [10, 20])
    same_D = mixer(mine_D, mine_D.expand(3, -1).clone(), weights_K)
    torch.testing.assert_close(same_D, mine_D, rtol=1e-6, atol=1e-6)
    theirs_KD[1] = math.nan
    assert mixer(mine_D, theirs_KD, weights_K).isfinite().all()
    zero_D = torch.zeros(30)
    assert torch.equal(mixer(zero_D, zero_D.expand(3, -1).clone(), weights_K), zero_D)
    assert torch.equal(mixer(mine_D, theirs_KD[:0], weights_K[:0]), mine_D)


def test_the_trainer_keeps_variance() -> None:
    table = {"name": "a", "peers": {"a": "host:1", "b": "host:2"}, "mixing": {"keep_variance": True}}
    trainer, plain = make_trainer(parse(table), 1), make_trainer(parse(table | {"mixing": {}}), 1)
    mixed: list[Tensor] = []
    for each in (trainer, plain):
        mixer: Callable[..., Tensor] = each._mixer  # pyright: ignore[reportPrivateUsage]: what the rounds use
        D = each._model.flat_D.numel()  # pyright: ignore[reportPrivateUsage]: its size
        mine_D, theirs_KD, weights_K = models(1, D, seed=1, dtype=torch.float32)
        mixed.append(mixer(mine_D, theirs_KD, weights_K + 0.5))
    assert mixed[0].var() > 1.1 * mixed[1].var()
