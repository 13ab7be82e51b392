"""Tiny Hugging Face models in a folder: random weights, a tokenizer with a token per word; and tasks on them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from murmurate.peer.config import Config, parse
from murmurate.peer.learning.tasks import make_task
from murmurate.peer.learning.tasks.causal_lm import CausalLM
from murmurate.peer.learning.tasks.classification import Classification

WORDS = ["red", "green", "blue", "one", "two", "three", "the", "a", "is", "warm", "cold", "big", "small", "yes", "no"]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
SIZES: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip


def save(folder: Path, kind: str, padding: bool = True, special: bool = True, labels: Sequence[str] = ()) -> str:
    """A `llama` or a `bert`, with a head for these labels if any, and its tokenizer, which puts a `special` token
    before a text; returns the folder's name.
    """
    import transformers

    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    if kind == "llama":
        sizes: dict[str, Any] = SIZES | ({} if padding else {"pad_token_id": None})
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    elif labels:
        sizes = SIZES | {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    else:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, hidden_dropout_prob=0.1))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue] (a property in Rust)
    if special:
        tokenizer.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue] (as above)
            single="<s> $A", special_tokens=[("<s>", 2)]
        )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    names |= {"pad_token": "<pad>"} if padding else {}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return str(folder)


def config_of(name: str, me: str = "a", peers: str = "ab", seed: int = 0, **task: Any) -> Config:
    addresses = {peer: f"localhost:{7000 + i}" for i, peer in enumerate(peers)}
    return parse({"name": me, "peers": addresses, "swarm": {"seed": seed}, "task": {"name": name, **task}})


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def causal(model: str, data: str, me: str = "a", **options: Any) -> CausalLM:
    task = make_task(config_of("causal_lm", me, data=data, options={"model": model, "length": 8, **options}))
    assert isinstance(task, CausalLM)
    return task


def classify(model: str, data: str, **options: Any) -> Classification:
    task = make_task(config_of("classification", data=data, options={"model": model, "length": 16, **options}))
    assert isinstance(task, Classification)
    return task
