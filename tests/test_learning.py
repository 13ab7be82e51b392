"""The parts of a trainer: the flat model, optimizers, local steps, payloads, rules, lies, and saved values."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from murmurate.peer.config import Local, Mixing
from murmurate.peer.errors import ConfigError, RemoteError
from murmurate.peer.learning import snapshot
from murmurate.peer.learning.exchange import Models
from murmurate.peer.learning.flat import FlatModel, is_finite
from murmurate.peer.learning.local_steps import make_step
from murmurate.peer.learning.mixing import make_mixer
from murmurate.peer.learning.optimizers import ELEMENTWISE, FUSED, Sgd, make_optimizer, use_hyperparameters
from murmurate.peer.learning.randomness import derive


class Tied(nn.Module):
    """A tied pair, a frozen parameter, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight
        self.fixed = nn.Parameter(torch.ones(7), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.embedding(tokens)))


class Bowl:
    """A task whose loss is half the squared distance to the batch, for models of any shape."""

    train_size = 1

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def batch(self, indices_B: Tensor) -> float:
        return float(indices_B.sum())

    def loss(self, model: nn.Module, batch: float) -> Tensor:
        return sum(((value - batch) ** 2).sum() / 2 for value in model.parameters()) + torch.zeros(())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {}


# FlatModel -------------------------------------------------------------------------------------------


def test_parameters_and_gradients_are_views_of_two_vectors() -> None:
    torch.manual_seed(0)
    module = Tied()
    values = [value.detach().clone() for _, value in module.named_parameters() if value.requires_grad]
    model = FlatModel(module)
    assert model.schema == (
        ("embedding.weight", (5, 3), "float32"),
        ("norm.weight", (3,), "float32"),
        ("norm.bias", (3,), "float32"),
        ("head.bias", (5,), "float32"),
    )
    assert torch.equal(model.flat_D, torch.cat([value.flatten() for value in values]))
    assert model.flat_D.numel() == 15 + 3 + 3 + 5
    assert module.head.weight is module.embedding.weight
    module(torch.arange(5)).square().sum().backward()
    assert torch.equal(
        model.grad_D, torch.cat([value.grad.flatten() for value in model.parameters if value.grad is not None])
    )
    assert model.grad_D.abs().sum() > 0
    model.flat_D.fill_(2)
    assert all((value == 2).all() for value in model.parameters)
    assert (module.fixed == 1).all()
    assert torch.equal(model.named(model.flat_D)["embedding.weight"], module.head.weight)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.ReLU(), "no trainable parameter"),
        (nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()), "one floating dtype"),
        (nn.Linear(1, 1).requires_grad_(False), "no trainable parameter"),
    ],
)
def test_models_that_cannot_be_flat_are_refused(module: nn.Module, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        FlatModel(module)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_is_finite(poison: float) -> None:
    vector = torch.full((100,), 3e38)  # its sum overflows
    assert is_finite(vector)
    vector[57] = poison
    assert not is_finite(vector)


# Optimizers ------------------------------------------------------------------------------------------


def trajectory(optimizer: str, options: dict[str, Any] | None, steps: int = 5, **local: Any) -> FlatModel:
    model = FlatModel(Bowl().model())
    given = {} if options is None else {"options": options}
    settings = Local(optimizer=optimizer, lr=0.01, **given, **local)
    step = make_step(settings, Bowl(), model, make_optimizer(settings, model))
    for i in range(steps):
        step(float(i))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.0},
        {"momentum": 0.8, "weight_decay": 0.1},
        {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
    ],
)
def test_sgd_is_torchs_bit_for_bit(options: dict[str, Any]) -> None:
    expected = Bowl().model()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.01, foreach=False, **options)
    for i in range(5):
        optimizer.zero_grad()
        Bowl().loss(expected, float(i)).backward()
        optimizer.step()
    assert torch.equal(trajectory("sgd", options).flat_D, FlatModel(expected).flat_D)


def test_polyak_is_the_average_of_gradients() -> None:
    w_D = FlatModel(Bowl().model()).flat_D
    m_D = torch.zeros_like(w_D)
    for i in range(5):
        m_D = 0.99 * m_D + (1 - 0.99) * (w_D - i)
        w_D = w_D - 0.01 * m_D
    torch.testing.assert_close(trajectory("polyak", None).flat_D, w_D)


def test_defaults_of_another_optimizer_are_not_ours() -> None:
    """The default momentum is meant for sgd, and must reach neither Adam nor RMSprop."""
    assert Local().options == {}
    assert torch.equal(trajectory("sgd", None).flat_D, trajectory("sgd", {"momentum": 0.9}).flat_D)
    assert torch.equal(trajectory("rmsprop", None).flat_D, trajectory("rmsprop", {"momentum": 0.0}).flat_D)
    local = Local(optimizer="rmsprop")
    optimizer = make_optimizer(local, FlatModel(Bowl().model()))
    use_hyperparameters(optimizer, local)
    assert optimizer.param_groups[0]["momentum"] == 0


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_elementwise_optimizers_give_what_they_give_layer_by_layer(name: str) -> None:
    expected = Bowl().model()
    kind = next(value for key, value in vars(torch.optim).items() if key.lower() == name)
    optimizer = kind(expected.parameters(), lr=0.01, foreach=False)
    for i in range(5):
        optimizer.zero_grad()
        Bowl().loss(expected, float(i)).backward()
        optimizer.step()
    torch.testing.assert_close(trajectory(name, None).flat_D, FlatModel(expected).flat_D, rtol=1e-5, atol=1e-6)


def test_which_optimizers_see_layers() -> None:
    model = FlatModel(Bowl().model())

    def shapes(name: str) -> list[tuple[int, ...]]:
        groups = make_optimizer(Local(optimizer=name), model).param_groups
        return [tuple(value.shape) for group in groups for value in group["params"]]

    assert shapes("AdamW") == [(26,)]
    assert shapes("adafactor") == shapes("lamb") == [(4, 3), (4,), (2, 4), (2,)]
    assert ELEMENTWISE >= FUSED


def test_libraries_optimizers_work_on_views() -> None:
    start = FlatModel(Bowl().model()).flat_D
    for name in ("lion", "adamp", "soap"):
        assert not torch.equal(trajectory(name, None).flat_D, start)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adamm", None, "'adamm': unknown; did you mean .*adam"),
        ("zzzz", None, "unknown; known are .*sgd"),
        ("adam", {"momentum": 0.9}, "adam has no such option; it has betas, eps"),
        ("sgd", {"beta": 0.9}, "sgd has no such option; it has momentum, dampening"),
        ("sgd", {"momentum": 1.5}, r"should be in \[0, 1\)"),
        ("adam", {"betas": [2.0, 0.9]}, "Invalid beta parameter"),
        ("lbfgs", None, "cannot be used here.*closure"),
        ("sparseadam", None, "cannot be used here"),
        ("adahessian", None, "cannot be used here"),
        ("lomo", None, "'lomo'"),
    ],
)
def test_optimizers_that_cannot_work_are_refused(name: str, options: dict[str, Any] | None, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        trajectory(name, options)


def test_without_the_library_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ConfigError, match=r"unknown; .*pip install murmurate\[optimizers\]"):
        trajectory("lion", None)


# Local steps -----------------------------------------------------------------------------------------


def test_sam_descends_along_the_gradient_uphill() -> None:
    w_D = FlatModel(Bowl().model()).flat_D
    for i in range(3):
        gradient_D = w_D - i
        uphill_D = w_D + 0.3 * gradient_D / gradient_D.norm()
        w_D = w_D - 0.01 * (uphill_D - i)
    found = trajectory("sgd", {"momentum": 0.0}, steps=3, sam_rho=0.3)
    torch.testing.assert_close(found.flat_D, w_D)


def test_sam_brings_the_weights_back_exactly() -> None:
    """With a step of zero length nothing may have changed; adding and subtracting would leave rounding."""
    model = FlatModel(Bowl().model())
    before = model.flat_D.clone()
    optimizer = Sgd(model, lr=0.0)
    step = make_step(Local(sam_rho=0.1), Bowl(), model, optimizer)
    for i in range(20):
        step(float(i))
    assert torch.equal(model.flat_D, before)


def test_sam_bears_a_gradient_of_zero() -> None:
    model = FlatModel(Bowl().model())
    model.flat_D.fill_(2.0)
    settings = Local(sam_rho=0.1)
    loss = make_step(settings, Bowl(), model, make_optimizer(settings, model))(2.0)
    assert loss == 0
    assert (model.flat_D == 2).all()


# Payloads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "width", "digits"), [("float32", 4, 0.0), ("float16", 2, 2**-11), ("bfloat16", 2, 2**-8)]
)
@given(st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=50))
def test_payloads_carry_models(dtype: str, width: int, digits: float, values: list[float]) -> None:
    flat_D = torch.tensor(values)
    exchange = Models(len(values), dtype)
    payload = exchange.pack(flat_D)
    assert len(payload) == exchange.payload_bytes == width * len(values)
    for carrier in (bytes(payload), bytearray(payload), memoryview(payload)):
        out_D = torch.empty(len(values))
        exchange.unpack(carrier, out_D)
        torch.testing.assert_close(out_D, flat_D, rtol=digits, atol=1e-7 if digits else 0.0)


def test_payloads_are_little_endian_copies() -> None:
    flat_D = torch.tensor([1.0, -2.0])
    payload = Models(2, "float32").pack(flat_D)
    flat_D.zero_()
    assert bytes(payload) == b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    assert bytes(Models(2, "bfloat16").pack(torch.tensor([1.0, -2.0]))) == b"\x80\x3f\x00\xc0"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_saturate(dtype: str) -> None:
    flat_D = torch.tensor([3.4e38, -3.4e38, 1.0])
    out_D = torch.empty(3)
    exchange = Models(3, dtype)
    exchange.unpack(exchange.pack(flat_D), out_D)
    assert is_finite(out_D)
    assert out_D[0] == -out_D[1] == torch.finfo(getattr(torch, dtype)).max


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rubbish_is_refused(dtype: str) -> None:
    exchange = Models(3, dtype)
    out_D = torch.empty(3)
    for poison in (math.nan, math.inf, -math.inf):
        bits = torch.tensor([1.0, poison, 0.0]).to(getattr(torch, dtype)).view(torch.uint8)
        with pytest.raises(RemoteError, match="not finite"):
            exchange.unpack(bits.numpy().tobytes(), out_D)
    for wrong in (b"", b"x", bytes(exchange.payload_bytes - 1), bytes(exchange.payload_bytes + 1)):
        with pytest.raises(RemoteError, match=f"a payload of {len(wrong)} bytes"):
            exchange.unpack(wrong, out_D)


# Rules and lies --------------------------------------------------------------------------------------


def test_rules_refuse_what_they_cannot_bear() -> None:
    make_mixer(Mixing(rule="mean"), 0)
    make_mixer(Mixing(rule="nna", f=2), 4)
    for mixing, degree, expected in (
        (Mixing(rule="mean", f=1), 9, "one liar is enough"),
        (Mixing(rule="nna", f=2), 3, "choose f <= 1"),
        (Mixing(rule="medain"), 9, "unknown; known are mean, nna"),
    ):
        with pytest.raises(ConfigError, match=expected):
            make_mixer(mixing, degree)


def test_rules_do_what_they_say() -> None:
    mine_D = torch.zeros(2)
    theirs_KD = torch.tensor([[1.0, 1], [100, 100]])
    weights_K = torch.tensor([0.25, 0.25])
    assert make_mixer(Mixing(rule="mean"), 2)(mine_D, theirs_KD, weights_K).tolist() == [25.25, 25.25]
    assert make_mixer(Mixing(rule="nna", f=1), 2)(mine_D, theirs_KD, weights_K).tolist() == [0.5, 0.5]


# Saved values ----------------------------------------------------------------------------------------

plain = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text()
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text() | st.tuples(st.integers()), inner)
    ),
    max_leaves=8,
)


@given(nested)
def test_encoded_values_come_back(value: Any) -> None:
    assert snapshot.decode(snapshot.encode(value, {}), {}) == value


def test_encoded_tensors_are_copies() -> None:
    tensors: dict[str, Tensor] = {}
    value = torch.ones(2)
    encoded = snapshot.encode({0: [value, (value,)]}, tensors)
    value.zero_()
    decoded = snapshot.decode(encoded, tensors)
    assert decoded[0][0].tolist() == decoded[0][1][0].tolist() == [1, 1]
    for shape in (
        torch.zeros(2, 3, 4),
        torch.zeros(2, 3, 4).transpose(0, 1),
        torch.zeros(2, 3, 4).permute(2, 0, 1),
        value,
    ):
        decoded = snapshot.decode(snapshot.encode(shape, tensors), tensors)
        assert (decoded.shape, decoded.stride()) == (shape.shape, shape.stride())
    with pytest.raises(TypeError, match="object cannot be saved"):
        snapshot.encode([object()], {})


def test_first_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source, target = Tied(), Tied()
    path = tmp_path / "weights.safetensors"
    snapshot.save_model(path, {name: value.clone() for name, value in source.state_dict().items()})
    base = snapshot.load_weights(path, target)
    assert base.startswith("sha256:")
    assert len(base) == 7 + 64
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    assert target.head.weight is target.embedding.weight
    once = {name: value.clone() for name, value in source.state_dict().items() if name != "head.weight"}
    snapshot.save_model(path, once)
    snapshot.load_weights(path, target)
    snapshot.save_model(path, {**once, "head.bias": torch.ones(6)})
    with pytest.raises(ConfigError, match=r"head.bias is \(6,\) in the file and \(5,\) in the task's model"):
        snapshot.load_weights(path, target)
    snapshot.save_model(path, {"other": torch.ones(6)})
    with pytest.raises(ConfigError, match="is missing in the file"):
        snapshot.load_weights(path, target)
    path.write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        snapshot.load_weights(path, target)


def test_derived_seeds_are_fixed_for_ever() -> None:
    """Peers of different versions, and snapshots of older ones, rely on these."""
    assert derive(0, "order", 1, 2) == 6492929615091620735
    assert len({derive(*parts) for parts in ((1, 23), (12, 3), ("1", 23), (1, 23, 0))}) == 4
