"""`causal_lm`: a Hugging Face causal language model learns text, or to complete prompts.

Data: see `rows`. Rows with `text` (option `text` names the field) are joined, an end-of-text token after each, and cut
into blocks of `length` tokens. Rows with `prompt` and `completion` stay one example each, and only the completion
counts in the loss; what is too long loses the beginning of the prompt, then the end of the completion.
Options: `model` (a folder or hub name), `length`, `dtype`, `text`, `shared`, and for low-rank adapters `lora` (rank),
`lora_alpha`, `lora_targets`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from murmurate.peer import config
from murmurate.peer.errors import ConfigError

from . import hub
from .options import read_options
from .rows import read_rows, split_rows, spread, text_of

OPTIONS: dict[str, Any] = {
    "model": "", "length": 256, "dtype": "float32", "text": "text", "shared": False, **hub.LORA
}  # fmt: skip
IGNORED = -100  # the target that cross_entropy leaves out
EVAL_ROWS = 8  # examples per forward pass of an evaluation: their logits are large (a guess)

Example = tuple[list[int], int]
"""Tokens, and how many of the first are not to be predicted."""


class CausalLM:
    """A batch is tokens [B, length], which of them are not padding, and targets (IGNORED where there is none)."""

    common = ""

    def __init__(self, options: Mapping[str, Any], train: list[Example], test: list[Example], device: str) -> None:
        self._options = options
        self._train = [part.to(device) for part in _tensors(train, options["length"])]
        self._test = [part.to(device) for part in _tensors(test, options["length"])]
        self.train_size = len(train)

    def model(self) -> nn.Module:
        """The model as Hugging Face has it, or peft's with adapters."""
        o = self._options
        module = hub.load_model("AutoModelForCausalLM", o["model"], o["length"], o["dtype"])
        return hub.add_lora(module, o, "CAUSAL_LM")

    def batch(self, indices_B: Tensor) -> list[Tensor]:
        """The examples at these positions, cut to the longest of them."""
        return _select(self._train, indices_B)

    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """Mean cross entropy per predicted token, in nats."""
        return cross_entropy(*_predictions(model, batch), ignore_index=IGNORED)

    def score(self, model: nn.Module, batch: Sequence[Tensor]) -> float:
        """The share of the predicted tokens that are right."""
        logits_NV, targets_N = _predictions(model, batch)
        return float((logits_NV.argmax(1) == targets_N).sum() / (targets_N != IGNORED).sum())

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Token accuracy, loss and perplexity on (a fixed sample of) the held-out rows."""
        correct, loss, count = 0, 0.0, 0
        for indices_B in spread(len(self._test[0]), self._test[0].device).split(EVAL_ROWS):
            logits_NV, targets_N = _predictions(model, _select(self._test, indices_B))
            correct += int((logits_NV.argmax(1) == targets_N).sum())
            loss += float(cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum"))
            count += int((targets_N != IGNORED).sum())
        # A loss beyond the exponent's range is infinite perplexity, not an error.
        perplexity = math.exp(loss / count) if loss / count < 700 else math.inf
        return {"accuracy": correct / count, "loss": loss / count, "perplexity": perplexity}


def make_task(config: config.Config) -> CausalLM:
    """The text of this peer."""
    options = read_options(config.task, OPTIONS)
    hub.check(config.task, options)
    rows = read_rows(config.task, options["text"])
    if all("prompt" in row.fields and "completion" in row.fields for row in rows):
        pairs = [(text_of(row, "prompt"), text_of(row, "completion")) for row in rows]
        tokenizer = hub.load_tokenizer(options["model"], [completion for _, completion in pairs])
        train, test = split_rows(config, pairs, [0] * len(pairs), options["shared"])
        examples = [_completions(tokenizer, part, options["length"]) for part in (train, test)]
    else:
        texts = [text_of(row, options["text"]) for row in rows]
        tokenizer = hub.load_tokenizer(options["model"], texts)
        examples = _blocks(config, tokenizer, texts, options)
    if not all(examples):
        raise ConfigError(f"task.data = {config.task.data!r}: too little text for a length of {options['length']}")
    return CausalLM(options, examples[0], examples[1], config.runtime.device)


def _predictions(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [N, vocabulary] in float32, and targets [N]: those of position t from all before it."""
    tokens_BT, mask_BT, targets_BT = batch
    logits_BTV = model(input_ids=tokens_BT, attention_mask=mask_BT.long(), use_cache=False).logits
    return logits_BTV[:, :-1].flatten(0, 1).float(), targets_BT[:, 1:].flatten()


def _select(table: Sequence[Tensor], indices_B: Tensor) -> list[Tensor]:
    tokens_BT, mask_BT, targets_BT = (part.index_select(0, indices_B) for part in table)
    longest = int(mask_BT.sum(1).max())
    return [tokens_BT[:, :longest].long(), mask_BT[:, :longest], targets_BT[:, :longest].long()]


# Data -------------------------------------------------------------------------------------------------


def _completions(tokenizer: Any, pairs: Sequence[tuple[str, str]], length: int) -> list[Example]:
    """Each part is cut into tokens by itself, so that what counts does not depend on where two words meet."""
    examples: list[Example] = []
    for prompt, completion in pairs:
        wanted = [*tokenizer(completion, add_special_tokens=False)["input_ids"], *_end(tokenizer)][: length - 1]
        given = tokenizer(prompt)["input_ids"] or _end(tokenizer)
        given = given[-(length - len(wanted)) :]
        if wanted and given:
            examples.append((given + wanted, len(given)))
    return examples


def _blocks(
    config: config.Config, tokenizer: Any, texts: Sequence[str], options: Mapping[str, Any]
) -> list[list[Example]]:
    """Training and held-out blocks. Of a single text, it is the blocks that are split."""
    length, shared = options["length"], options["shared"]
    if len(texts) == 1:
        blocks = _chop(_tokens(tokenizer, texts), length)
        return list(split_rows(config, blocks, [0] * len(blocks), shared))
    parts = split_rows(config, texts, [0] * len(texts), shared)
    return [_chop(_tokens(tokenizer, part), length) for part in parts]


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    end = _end(tokenizer)
    return [token for text in texts for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]]


def _chop(tokens: list[int], length: int) -> list[Example]:
    """Blocks of `length`; the rest that does not fill one is left out, unless there is nothing else."""
    blocks = [(tokens[start : start + length], 0) for start in range(0, len(tokens) - length + 1, length)]
    return blocks or [(tokens, 0)][: len(tokens) > 1]


def _end(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _tensors(examples: Sequence[Example], length: int) -> list[Tensor]:
    tokens_NT = torch.zeros(len(examples), length, dtype=torch.int32)
    mask_NT = torch.zeros(len(examples), length, dtype=torch.bool)
    targets_NT = torch.full((len(examples), length), IGNORED, dtype=torch.int32)
    for i, (tokens, skipped) in enumerate(examples):
        tokens_NT[i, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        mask_NT[i, : len(tokens)] = True
        targets_NT[i, skipped : len(tokens)] = tokens_NT[i, skipped : len(tokens)]
    return [tokens_NT, mask_NT, targets_NT]
