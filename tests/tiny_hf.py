"""Tiny Hugging Face models in a folder: random weights, a tokenizer with a token per word."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["red", "green", "blue", "one", "two", "three", "the", "a", "is", "warm", "cold", "big", "small", "yes", "no"]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
SIZES: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip


def save(folder: Path, kind: str, padding: bool = True) -> str:
    """A `llama` or a `bert` with its tokenizer; returns the folder's name."""
    import transformers

    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    if kind == "llama":
        sizes: dict[str, Any] = SIZES | ({} if padding else {"pad_token_id": None})
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    else:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, hidden_dropout_prob=0.1))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue] (a property in Rust)
    tokenizer.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue] (as above)
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    names |= {"pad_token": "<pad>"} if padding else {}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return str(folder)
