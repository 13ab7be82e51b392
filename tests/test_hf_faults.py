"""What is wrong with a model, with its tokenizer or with the data of a Hugging Face task is one clear sentence."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.tasks import make_task

from .tiny_hf import WORDS, causal, classify, config_of, save, write

TEXT = "the red is warm the green is cold the blue is big " * 60


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("hf") / "llama", "llama")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("hf") / "bert", "bert")


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    rows = [{"text": f"{WORDS[i % 9]} is {WORDS[9 + i % 2]}", "label": ["hot", "ice"][i % 2]} for i in range(60)]
    return write(tmp_path / "labelled.jsonl", rows)


# Models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_a_missing_library_is_named(llama: str, text: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"needs {library} .*: pip install murmurate\[hf\]"):
        causal(llama, text, lora=1).model()


def test_a_hub_name_without_a_network_says_what_to_do(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"(?s)'some/model' is not a folder.*hf download some/model --local-dir"):
        causal("some/model", text)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used as a AutoTokenizer"):
        causal(str(tmp_path), text)


def test_a_model_that_was_cut_short_is_refused(tmp_path: Path, text: str) -> None:
    model = save(tmp_path / "model", "llama")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"cannot be used as a AutoModelForCausalLM of Hugging Face: .*incomplete"):
        causal(model, text).model()


def test_a_head_for_other_labels_is_refused(tmp_path: Path, labelled: str) -> None:
    model = save(tmp_path / "model", "bert", labels=["bad", "fair", "good"])
    with pytest.raises(ConfigError, match=r"a head for 3 labels \(bad, fair, good\), and here are 2: hot, ice"):
        classify(model, labelled)


def test_weights_of_other_sizes_are_refused(tmp_path: Path, text: str) -> None:
    model = save(tmp_path / "model", "llama")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 48}))
    with pytest.raises(ConfigError, match=r"cannot be used as a AutoModelForCausalLM of Hugging Face: ."):
        causal(model, text).model()


def test_texts_longer_than_a_models_positions_are_refused(llama: str, bert: str, text: str, labelled: str) -> None:
    causal(llama, text, length=64).model()
    with pytest.raises(ConfigError, match=r"task.options.length = 65: .*llama has positions for at most 64 tokens"):
        causal(llama, text, length=65).model()
    with pytest.raises(ConfigError, match=r"task.options.length = 65: .*bert has positions for at most 64 tokens"):
        classify(bert, labelled, length=65).model()
    with pytest.raises(ConfigError, match="at most 64 tokens"):
        make_task(config_of("docstrings", options={"encoder": bert, "length": 80})).model()


def test_positions_from_behind_the_paddings_do_not_count(tmp_path: Path, bert: str, labelled: str) -> None:
    """As RoBERTa has them: 64 in the table, and the first two mean something else."""
    import transformers

    sizes = json.loads((Path(bert) / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config: Any = transformers.RobertaConfig(
        **{name: sizes[name] for name in names}, max_position_embeddings=64, pad_token_id=1
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    for path in Path(bert).glob("tokenizer*"):
        (tmp_path / "roberta" / path.name).write_bytes(path.read_bytes())
    classify(str(tmp_path / "roberta"), labelled, length=62).model()
    with pytest.raises(ConfigError, match=r"task.options.length = 63: .* at most 62 tokens"):
        classify(str(tmp_path / "roberta"), labelled, length=63).model()


# Tokenizers ------------------------------------------------------------------------------------------


def test_a_tokenizer_that_knows_no_word_is_refused(tmp_path: Path, labelled: str) -> None:
    """transformers makes one of five tokens where the files are missing: training would go on, at chance."""
    model = save(tmp_path / "model", "bert")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"knows hardly anything of the texts \(180 of 180 tokens are unknown\)"):
        classify(model, labelled)


@pytest.mark.parametrize(("unknown", "fits"), [(19, True), (20, False)])
def test_a_tokenizer_that_knows_little_fits(bert: str, llama: str, tmp_path: Path, unknown: int, fits: bool) -> None:
    """Up to 19 of 20 words unknown, in any kind of data."""
    text = " ".join(["strange"] * unknown + ["red"] * (20 - unknown))
    rows = [{"text": text, "label": i % 2} for i in range(60)]
    pairs = [{"prompt": "red", "completion": text}] * 60
    labelled, paired = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "pairs.jsonl", pairs)
    for attempt in (
        lambda: classify(bert, labelled),
        lambda: causal(llama, labelled),
        lambda: causal(llama, paired),
    ):
        if fits:
            attempt()
            continue
        with pytest.raises(ConfigError, match="knows hardly anything of the texts"):
            attempt()


def test_a_text_without_a_token_is_refused(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "bert", special=False)
    rows = [{"text": "red" if i else " ", "label": i % 2} for i in range(60)]
    with pytest.raises(ConfigError, match="the tokenizer makes no token of the text ' '; leave it out"):
        classify(model, write(tmp_path / "rows.jsonl", rows))
    classify(model, write(tmp_path / "rows.jsonl", rows[1:]))


# Data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        ("", {}, "holds no rows"),
        ("[1]", {}, "rows.jsonl:1: should be an object"),
        ('{"text": "a", "label": 1}\n{"text": ', {}, "rows.jsonl:2: not JSON"),
        ('{"text": "a", "label": 1}\n\n' + "[" * 100_000, {}, "rows.jsonl:3: not JSON"),
        ('{"words": "a"}', {}, "rows.jsonl:1: has no field 'text', but words"),
        ("{}", {}, "rows.jsonl:1: has no field 'text', but nothing"),
        ('{"text": "a"}', {}, "rows.jsonl:1: has no field 'label', but text"),
        ('{"text": "a", "label": 0.5}', {}, "rows.jsonl:1: 'label' should be a text or a whole number, not 0.5"),
        ('\n{"text": "a", "label": true}', {}, "rows.jsonl:2: 'label' should be a text or a whole number, not true"),
        ('{"text": "a", "label": null}', {}, "rows.jsonl:1: 'label' should be a text or a whole number, not null"),
        ('{"text": ["a"], "label": 1}', {}, "rows.jsonl:1: 'text' should be a text, not more than that"),
        ('{"text": "\\ud800", "label": 1}', {}, "rows.jsonl:1: 'text' is no text: .*surrogates not allowed"),
        ('{"text": "a", "label": "x"}', {}, "at least two different labels, not x"),
        ('{"text": "a", "label": "x"}', {"labels": "y, z"}, "'x' is not one of y, z"),
        ('{"text": "a", "label": 1}', {"labels": "1, 2"}, "1 rows are too few"),
        ("", {"model": ""}, "needs a model: a folder, or a name"),
        ("", {"dtype": "int8"}, "should be one of float32, bfloat16, float16"),
        ("", {"lora": -1}, "lora = -1: should be at least 0"),
        ("", {"length": 1}, "length = 1: should be at least 2"),
    ],
)
def test_impossible_tasks_are_refused(
    bert: str, tmp_path: Path, rows: str, options: dict[str, Any], expected: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows)
    with pytest.raises(ConfigError, match=expected):
        classify(**{"model": bert, "data": str(tmp_path), **options})


@pytest.mark.parametrize("name", ["nothing", "nothing.jsonl", "nothing/texts.txt"])
def test_data_that_are_not_there_are_missed(bert: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"task.data = '.*{name}': there is no such file or folder"):
        classify(bert, str(tmp_path / name))


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_byte_order_mark_is_no_text(llama: str, tmp_path: Path, suffix: str) -> None:
    rows = json.dumps({"text": TEXT}) if suffix == "jsonl" else TEXT
    for mark in ("", "\ufeff"):
        (tmp_path / f"texts{mark and 'marked'}.{suffix}").write_text(mark + rows)
    plain, marked = (causal(llama, str(tmp_path / f"{name}.{suffix}")) for name in ("texts", "textsmarked"))
    assert [part.tolist() for part in plain._train] == [part.tolist() for part in marked._train]  # pyright: ignore[reportPrivateUsage] (it has no other use)
