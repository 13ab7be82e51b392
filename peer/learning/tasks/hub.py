"""What the Hugging Face tasks share: models and tokenizers from a folder or by name, and LoRA.

transformers and peft are an extra and slow to import, so this is where they are imported, when they are needed.
A name that is no folder is looked up in the Hugging Face hub and its local cache.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from murmurate.peer import config
from murmurate.peer.errors import ConfigError

from .options import at_least

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNKNOWN_MAX = 0.95  # share of a text that a fitting tokenizer may not know (a guess)
SAMPLE = 256  # texts that are looked at for it, and characters of each (guesses)
SAMPLE_CHARS = 4096
LORA: dict[str, Any] = {"lora": 0, "lora_alpha": 16, "lora_targets": ""}
"""Options for low-rank adapters: rank (0: train everything), alpha, names of the adapted modules, comma separated."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Tokens [B, length], which of them are not padding [B, length], and labels [B]."""


def load_model(kind: str, where: str, length: int, dtype: str = "float32", **arguments: Any) -> nn.Module:
    """`transformers.KIND.from_pretrained(where)`, on the CPU, all parameters of one dtype, for texts of `length`
    tokens. Raises ConfigError.

    Buffers stay as transformers makes them: the angles of rotary positions would be far off in 16 bits.
    """
    module: Any = _pretrained(kind, where, dtype=DTYPES[dtype], **arguments)
    for value in module.parameters():
        if value.is_floating_point():
            value.data = value.data.to(DTYPES[dtype])
    positions = _positions(module)
    if positions and length > positions:
        raise ConfigError(f"task.options.length = {length}: {where} has positions for at most {positions} tokens")
    return module


def load_config(where: str) -> Any:
    """What a model's config.json says. Raises ConfigError."""
    return _pretrained("AutoConfig", where)


def load_tokenizer(where: str, texts: Sequence[str]) -> Any:
    """The tokenizer that belongs to a model. Raises ConfigError for one that knows hardly anything of these texts:
    where its files are missing, transformers makes one without a vocabulary.
    """
    tokenizer = _pretrained("AutoTokenizer", where)
    sample = [text[:SAMPLE_CHARS] for text in texts[:: -(-len(texts) // SAMPLE) or 1] if text.strip()]
    if sample:
        tokens = [token for row in tokenizer(sample, add_special_tokens=False)["input_ids"] for token in row]
        unknown = sum(token == tokenizer.unk_token_id for token in tokens)
        if unknown > UNKNOWN_MAX * len(tokens) or not tokens:
            raise ConfigError(
                f"{where}: its tokenizer knows hardly anything of the texts ({unknown} of {len(tokens)} tokens are "
                "unknown); are the tokenizer's files, such as tokenizer.json, in the model's folder?"
            )
    return tokenizer


def tokenise(tokenizer: Any, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Tokens [N, length], int32, cut or padded on the right, and what is not padding, bool. Raises ConfigError for a
    text without any.
    """
    rows = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    if not all(rows):
        raise ConfigError(f"the tokenizer makes no token of the text {texts[rows.index([])][:60]!r}; leave it out")
    tokens_NT = torch.full((len(rows), length), padding(tokenizer), dtype=torch.int32)
    mask_NT = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens_NT[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
        mask_NT[i, : len(row)] = True
    return tokens_NT, mask_NT


def padding(tokenizer: Any) -> int:
    """The token to pad with. Models of text generation often have none of their own."""
    found = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return 0 if found is None else found


def add_lora(module: nn.Module, options: Mapping[str, Any], kind: str) -> nn.Module:
    """Freeze the model and train adapters of rank `options.lora` (and a new head); rank 0 leaves all trainable.

    `kind` is peft's task type. The second factor of an adapter begins at zero, the first is drawn from torch's
    generator (LoRA, section 4.1). Raises ConfigError when the targets are not in the model.
    """
    if not options["lora"]:
        return module
    peft = _library("peft")
    targets = names(options["lora_targets"]) or None  # None: peft knows the attention projections of usual models
    adapters = peft.LoraConfig(
        r=options["lora"], lora_alpha=options["lora_alpha"], target_modules=targets, task_type=kind
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what peft itself asks transformers for
            # One dtype for all that is trained: what is exchanged is one vector.
            return peft.get_peft_model(module, adapters, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(f"task.options.lora_targets = {options['lora_targets']!r}: {error}") from None


def check(task: config.Task, options: Mapping[str, Any]) -> None:
    """Raises ConfigError for faults in the options that the tasks on a pretrained model share."""
    if not options["model"]:
        raise ConfigError(f"task.options.model: {task.name} needs a model: a folder, or a name in the Hugging Face hub")
    if options["dtype"] not in DTYPES:
        raise ConfigError(f"task.options.dtype = {options['dtype']!r}: should be one of {', '.join(DTYPES)}")
    at_least(task, "length", options["length"], 2)
    at_least(task, "lora", options["lora"], 0)
    at_least(task, "lora_alpha", options["lora_alpha"], 1)


def select(table: Batch, indices_B: Tensor) -> Batch:
    """The rows at these positions, cut to the longest of them."""
    tokens_BT, mask_BT, labels_B = (part.index_select(0, indices_B) for part in table)
    longest = int(mask_BT.sum(1).max())
    return tokens_BT[:, :longest].long(), mask_BT[:, :longest], labels_B


def names(text: str) -> list[str]:
    """The parts of a comma separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def find_package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def _pretrained(kind: str, where: str, **arguments: Any) -> Any:
    transformers = _library("transformers")
    transformers.logging.set_verbosity_error()  # such as that a head is new, which it should be
    transformers.logging.disable_progress_bar()
    folder = Path(where).expanduser()
    try:
        return getattr(transformers, kind).from_pretrained(folder if folder.is_dir() else where, **arguments)
    except MemoryError:
        raise
    except Exception as error:  # files of somebody else's may fail in any way they like
        first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if folder.is_dir() or not isinstance(error, (OSError, ValueError)):
            raise ConfigError(f"{where}: cannot be used as a {kind} of Hugging Face: {first_line}") from None
        raise ConfigError(
            f"{where!r} is not a folder, and could not be had from the Hugging Face hub: {first_line}\n"
            f"Without a network: `hf download {where} --local-dir FOLDER` on a machine that has one, copy the folder "
            "here, and name it instead"
        ) from None


def _positions(module: Any) -> int:
    """The longest text that a model was made for; 0: it does not say."""
    found = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and "position" in name and part.padding_idx is not None:
            found = part.num_embeddings - part.padding_idx - 1  # RoBERTa counts positions from behind its padding's
    return found if isinstance(found, int) and found > 0 else 0


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"this task needs {name} ({error}): pip install murmurate[hf]") from None
