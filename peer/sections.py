"""The tables of a peer's configuration: every knob, typed, and documented under the field.

That text is a knob's only documentation: `murmurate init` and `murmurate config` print it as TOML comments. Whether a
choice exists (an optimizer, a rule, a graph) is known to the registry that resolves it, not here.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Option = str | int | float | bool | list[float]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
# A host name, an IPv4 address, or an IPv6 address in brackets.
ADDRESS_PATTERN = re.compile(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]):([0-9]{1,5})")
SHOWN_MAX = 60  # characters of a value in an error (a guess)


class Section(BaseModel):
    """One table of the TOML file."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Swarm(Section):
    """What this swarm is. All peers must agree on every value here."""

    name: str = Field(default="swarm", pattern=NAME_PATTERN)
    """A name for people; it is part of the swarm's identity."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides the first weights and the split of the data; a random graph has a seed among its options."""


class Task(Section):
    """The model and the data. `name` and `options` must agree in all peers; data and shard are each peer's own."""

    name: str = "digits"
    """`digits`, `chars`, another of docs/tasks.md, or your own as `module:function`."""
    options: dict[str, Option] = Field(default_factory=dict)
    """What the task itself understands, e.g. `{ model = "cnn" }` for digits."""
    data: str = ""
    """Where this peer's data lies, for tasks that read files; each peer has its own."""
    partition: Literal["iid", "dirichlet", "shards"] = "iid"
    """How a data set that every peer holds is split: evenly at random, with label skew, or by sorted label."""
    alpha: float = Field(default=0.5, gt=0)
    """Concentration of `dirichlet`: 0.1 is strong label skew, 100 is nearly iid."""
    weights: str = ""
    """A safetensors file with the first weights (a pretrained model), the same in all peers; empty: drawn from
    `swarm.seed`."""


class Local(Section):
    """Local steps: what a peer does with its own data between two exchanges."""

    steps: int = Field(default=20, ge=1)
    """Optimizer steps per round (K)."""
    batch_size: int = Field(default=32, ge=1)
    """Examples per step."""
    optimizer: str = "sgd"
    """A class of torch.optim or (when installed) of the library pytorch-optimizer by name, or `polyak` (MoNNA's).
    All peers must agree on it, and on SAM or no SAM."""
    lr: float = Field(default=0.05, gt=0)
    """Learning rate."""
    options: dict[str, Option] = Field(default_factory=dict)
    """Further arguments of the optimizer, by its own names; sgd's momentum is 0.9 and polyak's 0.99 unless given."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How lr decays towards 0 over `schedule_rounds`. Liars do less harm the shorter the steps, down to none. With
    `seeds` it is part of the scalars, so no other peer has to know."""
    schedule_rounds: int = Field(default=0, ge=0)
    """Length of the schedule; 0: rounds.max."""
    sam_rho: float = Field(default=0.0, ge=0)
    """Radius of the sharpness-aware ascent step around any optimizer (DFedSAM uses 0.01 to 0.1); 0: no SAM."""


class Exchange(Section):
    """What crosses the wire. All peers must agree."""

    name: Literal["models", "seeds"] = "models"
    """`models`: every peer sends its model after its local steps. `seeds`: every peer sends one byte per probe, and
    all replicas are bit-identical; [seeds] has its choices."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of `models` on the wire; the two 16-bit formats halve the traffic."""
    parameters: str = ""
    """A regular expression: `models` exchanges and mixes only the parameters whose names contain a match; all others
    stay each peer's own. Empty: all."""


class Seeds(Section):
    """The `seeds` exchange. How to measure is each peer's own choice: `probe`, `objective`, `epsilon`, the schedule,
    and steps and probes as long as their product is the same; so are `gossip_s` and `vouchers`. On all
    else the peers must agree."""

    directions: Literal["private", "pool", "shared"] = "private"
    """Where directions come from: `private` (MeZO: each record has its own), `pool` (FedKSeed: one of a fixed number),
    `shared` (all peers probe the same ones in a round, and `rule` combines what they measured: bears liars)."""
    probes: int = Field(default=1, ge=1, le=4096)
    """Directions per step, whose mean is the step; a round publishes local.steps x probes records in one batch."""
    probe: str = "spsa"
    """How a record is measured: `spsa` (two passes), `sign`, `conservative`, `forward` (exact, by forward-mode
    differentiation) or `ferret` (first-order local steps, projected on shared directions)."""
    objective: Literal["loss", "score"] = "loss"
    """What to improve: the task's loss, or its `score` (accuracy, F1, ...: higher is better, no gradient needed)."""
    epsilon: float = Field(default=2.0**-10, gt=0)
    """Length of a probe along a direction whose entries are +1 and -1. (MeZO uses 1e-3) A model in bfloat16
    needs a longer one: its weights between 1 and 2 are 2^-7 apart, and 2^-10 moves none above 1/2."""
    unit_log2: int = Field(default=0, ge=-100, le=0)
    """A record moves the weights by a whole number of steps of 2^unit_log2; 0: 1/256 of local.lr / probes, rounded to a
    power of two, and then all peers must agree on those two."""
    rule: Literal["sum", "mean", "median", "trimmed_mean", "nna", "nnm_trimmed_mean"] = "mean"
    """With shared directions: how the scalars of a round become one; others than sum and mean bear `mixing.f` liars.
    With private ones and a pool everybody's steps add up, as in `sum`: more peers, longer steps."""
    pool: int = Field(default=4096, ge=1, le=65536)
    """Size of the pool. (FedKSeed's 4096)"""
    sampling: Literal["uniform", "pro"] = "uniform"
    """How a record's direction is drawn from the pool; `pro` prefers those with large scalars so far (FedKSeed-Pro) and
    sends two more bytes per record."""
    momentum: float = Field(default=0.0, ge=0, le=0.99)
    """Spreads each record's step over the origin's following rounds (ZO-SGD with momentum); 0: all at once."""
    parts: int = Field(default=1, ge=1, le=256)
    """Cut the parameters into so many parts; each record moves only one of them (block-sparse)."""
    parameters: str = ""
    """A regular expression: train only the parameters whose names contain a match; empty: all that the task trains."""
    memory: Literal["exact", "lean"] = "exact"
    """`exact` keeps base weights and integer sums beside the model; `lean` keeps the weights alone, on a grid of
    2^unit_log2, where every update is exact as well."""
    authority: list[str] = Field(default_factory=list)
    """Public keys (`murmurate key` prints a peer's) whose holders may retract another peer's records."""
    vouchers: int = Field(default=2, ge=0, le=64)
    """A joiner takes the sum of all records instead of their log where that is cheaper and so many neighbours (or all,
    if it has fewer) offer the same one; 0: always the log. Not with shared directions or momentum."""
    gossip_s: float = Field(default=1.0, gt=0)
    """How often to tell every neighbour in a few bytes what we hold; whatever was lost is then repaired. (a guess)"""


class Mixing(Section):
    """How neighbours' models are folded into ours. All peers must agree."""

    rule: str = "mean"
    """`mean` (weighted by the graph) and `flag` bear no liars. Those that weigh whole models: `nna` (nearest-neighbour
    averaging, MoNNA), `krum`, `multi_krum`, `mda`, `mva`, `geometric_median`, `centred_clipping`,
    `self_centred_clipping`; single parameters: `trimmed_mean`, `median`, `meamed`, `phocas`. Those that remember:
    `foolsgold`, `sybilwall`, `rffl`; `bristle` mixes a last layer by class. docs/mixing.md compares them."""
    before: Literal["", "nnm", "bucketing"] = ""
    """What to do first: `nnm` (each model becomes the mean of the n - f nearest to it), or `bucketing` (means of a few
    neighbours each take their place); both help where honest models differ much."""
    options: dict[str, Option] = Field(default_factory=dict)
    """The rule's own numbers. krum: `less` (1 or 2); multi_krum: also `keep`; geometric_median: `smoothing`, `steps`;
    centred_clipping: `radius`, `steps`; self_centred_clipping: `radius` (0 follows from f); flag: `rank`, `steps`.
    bucketing: `bucket_size`; foolsgold: `confidence`; sybilwall: also `spread`; rffl: `memory`, `clip`; bristle:
    `models`, `explore`."""
    keep_variance: bool = False
    """Give every parameter tensor of the mixture the variance that the models had on average: for models that did not
    begin alike. Not with liars."""
    f: int = Field(default=0, ge=0)
    """How many liars may sit among a peer's neighbours; a rule refuses what it cannot bear, and leaves a model as it is
    while too few are heard. With `seeds` among all names of the swarm, which vote by `seeds.rule`."""
    gossip_steps: int = Field(default=1, ge=1, le=64)
    """Exchanges per round (Q of DFedSAM-MGS): traffic times Q, graph gap to the power Q."""


class Audit(Section):
    """Audits of neighbours that exchange `models`: who sent what its own data and steps do not give is banned. Only for
    tasks whose data every peer holds. docs/protocol.md says what they find."""

    rate: float = Field(default=0.0, ge=0, le=1)
    """Chance per round of auditing one neighbour, which costs as much as one round's local steps, and the making of its
    task (which may read the data again) unless it is the one that was audited last; 0: no audits. All must agree
    whether it is 0, and if not on all of [local], task.partition, task.alpha and the kind of device."""
    deadline_s: float = Field(default=30.0, gt=0)
    """Longest silence of a neighbour that is alive and owes an answer; above five round trips, and above
    liveness.timeout_s. (a guess)"""


class Topology(Section):
    """Who may talk to whom. All peers must agree."""

    rule: str = "ring"
    """A graph by name; `murmurate topology list` shows all, `murmurate topology show` judges one."""
    options: dict[str, Option] = Field(default_factory=dict)
    """The graph's parameters, e.g. `{ degree = 4 }` for random_regular."""
    weights: Literal["metropolis", "max_degree"] = "metropolis"
    """Mixing weights of undirected graphs."""


class Rounds(Section):
    """Pacing. Each peer's own choice, except that a swarm wants one idea of how long it is."""

    max: int = Field(default=0, ge=0)
    """Leave after this many rounds; 0: go on until told to leave."""
    deadline_s: float = Field(default=30.0, gt=0)
    """Longest wait, after the local steps, for neighbours that are alive. With `seeds` also how long nothing new may
    have come before a peer that has made its last round leaves."""
    stale_max: int = Field(default=8, ge=0)
    """A neighbour's model older than this many rounds is not mixed any more. (a guess)"""
    eval_every: int = Field(default=1, ge=0)
    """Evaluate the model after every so many rounds; 0: never."""


class Liveness(Section):
    """Who is live. Each peer's own choice."""

    heartbeat_s: float = Field(default=0.5, gt=0)
    """A sign of life to every neighbour this often: a heartbeat, where no update was sent since the last."""
    timeout_s: float = Field(default=3.0, gt=0)
    """A neighbour silent for this long is dead, until it speaks again. At least 3 heartbeats. (a guess)"""
    join_s: float = Field(default=10.0, ge=0)
    """At start, wait this long for neighbours before training without them. With `seeds` a peer whose log was lost
    hears of its own feed in this time, and goes on with it; who trains earlier forks it, and is void."""
    settle_s: float = Field(default=1.0, ge=0)
    """Joining a running swarm: how long the first neighbour waits for the others to link as well; above the
    longest pause between two dial attempts (1 s) it rarely misses one."""

    @model_validator(mode="after")
    def _silence_is_longer_than_a_beat(self) -> Liveness:
        if self.timeout_s < 3 * self.heartbeat_s:
            raise ValueError(f"timeout_s = {self.timeout_s} should be at least 3 x heartbeat_s = {self.heartbeat_s}")
        return self


class Runtime(Section):
    """This machine: address, files, device. Each peer's own choice."""

    listen: str = ""
    """host:port to listen on; empty: this peer's own entry in [peers]. 0.0.0.0:7000 listens on every interface."""
    insecure: bool = False
    """Links are neither encrypted nor authenticated yet: listening beyond loopback needs this consent."""
    state_dir: str = ""
    """Snapshots, metrics and the control socket; empty: runs/NAME beside the config file."""
    device: str = "cpu"
    """Torch device of the model, e.g. `cpu` or `cuda:0`."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of torch; 0: torch's own choice."""
    snapshot_s: float = Field(default=30.0, ge=0)
    """Seconds between two snapshots; 0: after every round. One is always taken when leaving."""
    shutdown_s_max: float = Field(default=20.0, gt=0)
    """Longest time from the first SIGTERM/SIGINT to the end; a second signal ends at once."""
    payload_bytes_max: int = Field(default=4 * 2**30, ge=1)
    """Never accept a larger payload. The models exchange lowers this to the exact size of a model."""
    tensorboard: bool = False
    """Write TensorBoard events into the state directory (metrics.jsonl is always written)."""
    prometheus: str = ""
    """host:port of a Prometheus endpoint; empty: none."""

    @field_validator("listen", "prometheus")
    @classmethod
    def _address(cls, address: str, info: ValidationInfo) -> str:
        if address:
            split_address(address, f"runtime.{info.field_name}")
        return address


class Attack(Section):
    """For experiments only: this peer lies. The default is an honest peer."""

    name: Literal[
        "none",
        "sign_flip",
        "noise",
        "label_flip",
        "alie",
        "foe",
        "mimic",
        "backdoor",
        "stale",
        "bomb",
        "sybil",
        "free_rider",
        "max_flip",
    ] = "none"
    """Sends instead of its model: `sign_flip` -scale x it, `noise` it and noise, `alie` (A Little Is Enough) and `foe`
    (Fall of Empires) what harms most without being dropped, `mimic` another's, `stale` that of `scale` rounds ago,
    `bomb` NaN, infinities, 1e38 and rubbish, `free_rider` what it mixed. `label_flip` and `backdoor` train on poisoned
    data, `sybil` on the same ones under many names. With `seeds`: `sign_flip`, `label_flip`, `backdoor`, and
    `max_flip`, which sends the largest scalars of the wrong sign."""
    scale: float = Field(default=1.0, gt=0)
    """Strength of the attack: a factor of the lie, of a poisoner's steps, or a number of rounds."""
    accomplices: list[str] = Field(default_factory=list)
    """The names of those who lie together with this peer: their models tell it nothing of the honest ones."""
    omniscient: bool = False
    """Knows what all honest peers send in the same round. Only in simulations (`murmurate lab run`)."""


def split_address(address: str, key: str) -> tuple[str, int]:
    """`host:port` or `[IPv6]:port` -> (host, port). Raises ValueError naming `key`."""
    match = ADDRESS_PATTERN.fullmatch(address)
    if match and int(match[3]) <= 65535 and (match[1] or _is_ipv6(match[2])):
        return match[1] or match[2], int(match[3])
    raise ValueError(f"{key} = {shown(address)}: should be host:port, e.g. 192.168.1.5:7000 or [::1]:7000")


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def shown(value: object) -> str:
    """A value in an error, not too long."""
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."
