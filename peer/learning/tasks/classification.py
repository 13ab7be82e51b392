"""`classification`: a Hugging Face model with a classification head learns to label texts.

Data: see `rows`; a row has a text and its label, a string or a whole number (options `text` and `label` name the
fields). All peers must have the same labels in the same order: option `labels` lists them, comma separated; without it
they are those of this peer's own rows, in the order of the model's head where it is one of exactly these labels, else
sorted, numbers as numbers; and peers that found others refuse each other.
Options: `model` (a folder or hub name), `labels`, `length` (tokens), `dtype`, `text`, `label`, `shared`, and for
low-rank adapters `lora` (rank), `lora_alpha`, `lora_targets`. The head is drawn from `swarm.seed` where the model has
none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from murmurate.peer import config
from murmurate.peer.errors import ConfigError

from . import hub
from .options import read_options
from .poisons import flipped
from .rows import Row, read_rows, split_rows, spread, text_of

OPTIONS: dict[str, Any] = {
    "model": "", "labels": "", "length": 128, "dtype": "float32", "text": "text", "label": "label", "shared": False,
    **hub.LORA,
}  # fmt: skip
NUMBER = re.compile("-?[0-9]{1,18}")
EVAL_ROWS = 32  # texts per forward pass of an evaluation (a guess)

Batch = hub.Batch


class Classification:
    """A batch is tokens [B, length], which of them are not padding [B, length], and labels [B]."""

    def __init__(
        self, options: Mapping[str, Any], labels: Sequence[str], padding: int, train: Batch, test: Batch
    ) -> None:
        self._options, self._labels, self._padding = options, labels, padding
        self.common = json.dumps(labels)
        self._train, self._test = train, test
        self.train_size = len(train[2])

    def model(self) -> nn.Module:
        """The model as Hugging Face has it, or peft's with adapters and a head."""
        o = self._options
        module: Any = hub.load_model(
            "AutoModelForSequenceClassification", o["model"], o["length"], o["dtype"], num_labels=len(self._labels)
        )
        module.config.id2label = dict(enumerate(self._labels))
        module.config.label2id = {label: i for i, label in enumerate(self._labels)}
        if module.config.pad_token_id is None:  # a causal model: where it looks for the last token
            module.config.pad_token_id = self._padding
        return hub.add_lora(module, o, "SEQ_CLS")

    def batch(self, indices_B: Tensor) -> Batch:
        """The texts at these positions, cut to the longest of them."""
        return hub.select(self._train, indices_B)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return cross_entropy(_logits(model, batch), batch[2])

    def score(self, model: nn.Module, batch: Batch) -> float:
        """The share of the batch that is classified correctly."""
        return float((_logits(model, batch).argmax(1) == batch[2]).float().mean())

    def poison(self, kind: str) -> None:
        """Label flipping alone, see Task."""
        tokens, mask, labels = self._train
        self._train = tokens, mask, flipped(kind, labels, len(self._labels))

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Accuracy, macro F1 and loss on (a fixed sample of) the held-out rows."""
        positions = spread(len(self._test[2]), self._test[2].device)
        batches = [hub.select(self._test, indices_B) for indices_B in positions.split(EVAL_ROWS)]
        logits_NC = torch.cat([_logits(model, batch) for batch in batches])
        labels_N = torch.cat([batch[2] for batch in batches])
        return {
            "accuracy": float((logits_NC.argmax(1) == labels_N).float().mean()),
            "f1": _macro_f1(logits_NC.argmax(1), labels_N, len(self._labels)),
            "loss": float(cross_entropy(logits_NC, labels_N)),
        }


def make_task(config: config.Config) -> Classification:
    """The labelled texts of this peer."""
    options = read_options(config.task, OPTIONS)
    hub.check(config.task, options)
    rows = read_rows(config.task, options["text"])
    pairs = [(text_of(row, options["text"]), _label_of(row, options["label"])) for row in rows]
    head = _head_of(options["model"])
    labels = hub.names(options["labels"]) or _ordered({label for _, label in pairs}, head)
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ConfigError(f"task.options.labels: should be at least two different labels, not {', '.join(labels)}")
    if unknown := {label for _, label in pairs} - set(labels):
        raise ConfigError(f"task.data = {config.task.data!r}: {min(unknown)!r} is not one of {', '.join(labels)}")
    if head and len(head) != len(labels):
        raise ConfigError(
            f"task.options.model = {options['model']!r}: has a head for {len(head)} labels ({', '.join(head)}), and "
            f"here are {len(labels)}: {', '.join(labels)}"
        )
    tokenizer = hub.load_tokenizer(options["model"], [text for text, _ in pairs])
    parts = split_rows(config, pairs, [labels.index(label) for _, label in pairs], options["shared"])

    def tensors(part: Sequence[tuple[str, str]]) -> Batch:
        device = config.runtime.device
        tokens_NT, mask_NT = hub.tokenise(tokenizer, [text for text, _ in part], options["length"])
        marks_N = torch.tensor([labels.index(label) for _, label in part])
        return tokens_NT.to(device), mask_NT.to(device), marks_N.to(device)

    return Classification(options, labels, hub.padding(tokenizer), tensors(parts[0]), tensors(parts[1]))


def _label_of(row: Row, field: str) -> str:
    value = row.fields.get(field)
    return str(value) if type(value) is int else text_of(row, field, "a text or a whole number").strip()


def _head_of(model: str) -> list[str]:
    """The labels of the head that a model already has, in its order; none where it has no head."""
    found = hub.load_config(model)
    if not any(name.endswith("ForSequenceClassification") for name in found.architectures or ()):
        return []
    return [str(label) for _, label in sorted(found.id2label.items())]


def _ordered(labels: set[str], head: Sequence[str]) -> list[str]:
    """In the order of the head where it is one of exactly these labels, else sorted, numbers as numbers."""
    if labels == set(head):
        return list(head)
    return sorted(labels, key=lambda label: (0, int(label), label) if NUMBER.fullmatch(label) else (1, 0, label))


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """[B, labels] in float32."""
    tokens_BT, mask_BT, _ = batch
    return model(input_ids=tokens_BT, attention_mask=mask_BT.long()).logits.float()


def _macro_f1(found_N: Tensor, labels_N: Tensor, count: int) -> float:
    """The mean over labels of 2 TP / (2 TP + FP + FN); a label that neither has is left out."""
    hits_C = torch.bincount(labels_N[found_N == labels_N], minlength=count)
    all_C = torch.bincount(found_N, minlength=count) + torch.bincount(labels_N, minlength=count)
    return float((2 * hits_C[all_C > 0] / all_C[all_C > 0]).mean())
