"""How fast models become one: `kernels.mixing` beside torch as people write it, byzfl, and one reading of all rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from murmurate.kernels.mixing import yardsticks
from murmurate.kernels.noise.yardsticks import kind_and_threads, seconds
from murmurate.peer.config import Mixing
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.learning.mixing import make_mixer

COUNTS = (8, 16, 32)
# On the CPU most plain forms take up to a minute at full size, and temporaries of many gigabytes: they are timed on so
# many parameters, then scaled up. Their time is proportional to them,
PLAIN_PARAMETERS = 500_000
# but for those of whole vectors, which wait for memory: of 500,000 parameters a cache holds too much. These are timed
# on up to so many. Measured (K = 32, D = 1e7, one thread): at most 3 s, and 2.6 GB beside the models.
WHOLE = ("mean", "nna")
WHOLE_PARAMETERS = 10_000_000

Times = dict[str, float]
Rivals = Mapping[str, Mapping[str, yardsticks.Plain]]


def _krum(mine_D: Any, theirs_KD: Any, f: int) -> object:
    return _mixed(Mixing(rule="krum", f=f), mine_D, theirs_KD)


def _nnm_trimmed_mean(mine_D: Any, theirs_KD: Any, f: int) -> object:
    return _mixed(Mixing(rule="trimmed_mean", before="nnm", f=f), mine_D, theirs_KD)


def _mixed(mixing: Mixing, mine_D: Any, theirs_KD: Any) -> object:
    mixer = make_mixer(mixing, len(theirs_KD))
    return mixer(mine_D, theirs_KD, yardsticks.uniform(theirs_KD))


OURS: dict[str, yardsticks.Ours] = {**yardsticks.OURS, "krum": _krum, "nnm_trimmed_mean": _nnm_trimmed_mean}


def measure_mixing(
    repeats: int, step: Callable[[], object], parameters: int, device: str = "cpu"
) -> tuple[list[dict[str, Any]], dict[str, list[float]], dict[str, Any]]:
    """(a row per rule and number of neighbours, figures per repetition, what was fixed).

    `step` is called after each repetition. Ratios are taken within a repetition, and a row holds medians. A quarter of
    the neighbours may lie. Raises ConfigError for a device that is neither the CPU nor a GPU of this machine.
    """
    if not yardsticks.is_here(device):
        raise ConfigError(f"--device {device}: should be cpu, or cuda on a machine with a GPU that torch can use")
    device, threads = kind_and_threads(device)
    others = {"torch": yardsticks.PLAIN, "byzfl": yardsticks.byzfl()}
    times: dict[int, list[Times]] = {count: [] for count in COUNTS}
    for count in COUNTS:
        _warm_up(count, parameters, device, others)
    for _ in range(repeats):
        for count in COUNTS:
            times[count].append(_once(count, parameters, device, others))
        step()
    rows = [_row(rule, count, parameters, device, times[count]) for count in COUNTS for rule in OURS]
    figures = {f"read_bytes_per_s {k}": [_bytes(k, parameters) / once["read"] for once in times[k]] for k in COUNTS}
    fixed = {
        "parameters": parameters,
        "threads": threads,
        "plain": {rule: f"timed on {_measured(rule, parameters, device):,} parameters, scaled" for rule in OURS},
        "byzfl": bool(others["byzfl"]),
    }
    return rows, figures, fixed


def _warm_up(count: int, parameters: int, device: str, others: Rivals) -> None:
    """Compile everything: for a GPU at full size, for Triton compiles anew by what divides a number of parameters."""
    if device == "cpu":
        _timed(yardsticks.models(count, 1000), device, others)
    else:
        _once(count, parameters, device, others)


def _once(count: int, parameters: int, device: str, others: Rivals) -> Times:
    """Seconds of everything, once."""
    try:
        return _timed(yardsticks.models(count, parameters, device), device, others)
    except RuntimeError as error:  # torch's way to say that there is no memory
        raise LocalError(f"--parameters {parameters}: {str(error).splitlines()[0]}") from None


def _timed(all_ND: Any, device: str, others: Rivals) -> Times:
    """A rule and its rivals one after the other."""
    mine_D, theirs_KD, count, parameters = all_ND[0], all_ND[1:], len(all_ND) - 1, all_ND.shape[1]
    f, times, reads = count // 4, Times(), list[float]()
    for name, rule in OURS.items():
        size = _measured(name, parameters, device)
        some_ND = all_ND[:, :size].contiguous()  # before ours, whose models then are what the caches hold
        reads.append(_reading(theirs_KD, device))
        times[name] = seconds(lambda rule=rule: rule(mine_D, theirs_KD, f), device)
        for other, rules in others.items():
            if name in rules:
                took = seconds(lambda plain=rules[name], some_ND=some_ND: plain(some_ND, f), device)
                times[f"{name} {other}"] = took * parameters / size
    # The best, for whatever else was slow about a reading was not memory; and ours is one row more.
    return {**times, "read": min(reads) * (count + 1) / count}


def _measured(rule: str, parameters: int, device: str) -> int:
    """How many parameters the plain forms of a rule are timed on."""
    if device != "cpu":
        return parameters
    return min(parameters, WHOLE_PARAMETERS if rule in WHOLE else PLAIN_PARAMETERS)


def _reading(theirs_KD: Any, device: str) -> float:
    """Seconds of one reading of all rows; on a GPU half of what a copy takes, which writes as much as it reads."""
    if device == "cpu":
        return seconds(lambda: yardsticks.read(theirs_KD))
    return seconds(lambda: theirs_KD.clone(), device) / 2


def _bytes(count: int, parameters: int) -> int:
    return 4 * (count + 1) * parameters


def _row(rule: str, count: int, parameters: int, device: str, times: list[Times]) -> dict[str, Any]:
    row = {
        "rule": rule,
        "k": count,
        "d": parameters,
        "seconds": statistics.median(once[rule] for once in times),
        "speedup_over_torch": statistics.median(once[f"{rule} torch"] / once[rule] for once in times),
        # All rows read once, in the time of the rule: 1 is what no rule can beat.
        "fraction_of_read_bandwidth": statistics.median(once["read"] / once[rule] for once in times),
        "device": device,
    }
    if f"{rule} byzfl" in times[0]:
        row["speedup_over_byzfl"] = statistics.median(once[f"{rule} byzfl"] / once[rule] for once in times)
    return row
