"""How fast records become weights: `kernels.noise` beside MeZO's published way and beside one pass over the weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from murmurate.kernels import noise
from murmurate.kernels.noise import yardsticks
from murmurate.peer.errors import LocalError

COUNTS = (1, 8, 64, 256, 1024, 65_536)
# MeZO's way takes seconds per record at full size: it is timed on so many parameters and records, then scaled up. Its
# time is proportional to both: tensor by tensor, record by record, nothing is shared.
MEZO_PARAMETERS, MEZO_RECORDS = 20_000_000, 3
HISTORY_PARAMETERS, HISTORY_RECORDS = 22_000_000, 1_000_000  # a small sentence encoder, a long life
SIGNS, UNIT_LOG2, EPSILON = 1, -30, 1e-3

Times = dict[str, list[float]]


def measure_replay(
    repeats: int, step: Callable[[], object], parameters: int
) -> tuple[list[dict[str, Any]], dict[str, list[float]], dict[str, Any]]:
    """(a row per number of records, figures per repetition, what was fixed); `step` is called after each repetition.

    Ratios are taken within a repetition, and a row holds medians.
    """
    device, threads = yardsticks.kind_and_threads("auto")
    try:
        weights_D = yardsticks.model(parameters, device)
    except RuntimeError as error:  # torch's way to say that there is no memory
        raise LocalError(f"--parameters {parameters}: {str(error).splitlines()[0]}") from None
    history_D = yardsticks.model(min(parameters, HISTORY_PARAMETERS), device)
    _warm_up(device)
    times: list[Times] = []
    for _ in range(repeats):
        once = _once(weights_D, device)
        once["history_s"] = [_history(history_D, device)]
        times.append(once)
        step()
    rows = [_row(count, parameters, device, times) for count in COUNTS]
    figures = {
        "inplace_pass_s": [statistics.median(once["pass"]) for once in times],
        "perturb_s": [once["perturb"][0] for once in times],
        "perturb_times_inplace_pass": [once["perturb"][0] / statistics.median(once["pass"]) for once in times],
        "mezo_s_per_record": [once["mezo"][0] for once in times],
        "history_s": [once["history_s"][0] for once in times],
    }
    fixed = {
        "parameters": parameters,
        "threads": threads,
        "mezo": f"timed on {MEZO_RECORDS} records of {min(parameters, MEZO_PARAMETERS):,} parameters, scaled",
        "history": f"{HISTORY_RECORDS:,} records of {history_D.numel():,} parameters: accumulate, then materialise",
    }
    return rows, figures, fixed


def _warm_up(device: str) -> None:
    """Compile everything, on one block: for one record, for sums that fit 16 bits, and for those that need 32."""
    small_D = yardsticks.model(noise.BLOCK, device)
    for count in (1, 2, 1024):
        noise.replay(small_D, *yardsticks.history(count), SIGNS, UNIT_LOG2)
    noise.perturb(small_D, small_D, yardsticks.direction(), EPSILON, SIGNS)
    sums_D = yardsticks.empty_sums(noise.BLOCK, device)
    noise.accumulate(sums_D, *yardsticks.history(1024), SIGNS)
    noise.materialise(small_D, small_D, sums_D, UNIT_LOG2, SIGNS)


def _once(weights_D: Any, device: str) -> Times:
    """Seconds of everything, once; the pass before each, so that a machine whose speed drifts drifts under both."""
    times: Times = {"pass": []}

    def timed(name: str, call: Callable[[], object]) -> None:
        times["pass"].append(yardsticks.seconds(lambda: yardsticks.pass_in_place(weights_D), device))
        times[name] = [yardsticks.seconds(call, device)]

    for count in COUNTS:
        records = yardsticks.history(count)
        timed(str(count), lambda records=records: noise.replay(weights_D, *records, SIGNS, UNIT_LOG2))
    one = yardsticks.direction()
    timed("perturb", lambda: noise.perturb(weights_D, weights_D, one, EPSILON, SIGNS))
    slice_D = weights_D[:MEZO_PARAMETERS]
    timed("mezo", lambda: [yardsticks.mezo_step(slice_D, seed) for seed in range(MEZO_RECORDS)])
    scale = weights_D.numel() / slice_D.numel() / MEZO_RECORDS
    times["mezo"] = [seconds * scale for seconds in times["mezo"]]
    return times


def _history(out_D: Any, device: str) -> float:
    """A whole history into weights, in place: a joiner's last step."""
    records = yardsticks.history(HISTORY_RECORDS)
    sums_D = yardsticks.empty_sums(out_D.numel(), device)

    def fold() -> None:
        noise.accumulate(sums_D, *records, SIGNS)
        noise.materialise(out_D, out_D, sums_D, UNIT_LOG2, SIGNS)

    return yardsticks.seconds(fold, device)


def _row(count: int, parameters: int, device: str, times: list[Times]) -> dict[str, Any]:
    seconds = [once[str(count)][0] for once in times]
    mezo = [once["mezo"][0] * count / own for once, own in zip(times, seconds, strict=True)]
    passes = [own / statistics.median(once["pass"]) for once, own in zip(times, seconds, strict=True)]
    return {
        "k": count,
        "d": parameters,
        "seconds": statistics.median(seconds),
        "speedup_over_mezo": statistics.median(mezo),
        "times_inplace_pass": statistics.median(passes),
        "device": device,
    }
