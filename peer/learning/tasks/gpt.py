"""A plain GPT (Radford et al. 2019): pre-norm blocks of causal attention and GELU MLP, learnt positions, tied head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

INIT_STD = 0.02  # GPT-2


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, n_head: int, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.norm_attention = nn.LayerNorm(n_embd)
        self.query_key_value = nn.Linear(n_embd, 3 * n_embd)
        self.attended = nn.Linear(n_embd, n_embd)
        self.norm_mlp = nn.LayerNorm(n_embd)
        self.up = nn.Linear(n_embd, 4 * n_embd)
        self.down = nn.Linear(4 * n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x_BTC = x_BTC + self.dropout(self.attended(self._attend(self.norm_attention(x_BTC))))
        return x_BTC + self.dropout(self.down(gelu(self.up(self.norm_mlp(x_BTC)))))

    def _attend(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        heads = self.query_key_value(x_BTC).view(B, T, 3, self.n_head, C // self.n_head)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()
        mixed_BHTc = scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout.p if self.training else 0.0
        )
        return mixed_BHTc.transpose(1, 2).reshape(B, T, C)


class GPT(nn.Module):
    """Tokens [B, T] with T <= block -> logits [B, T, vocabulary]."""

    def __init__(self, vocabulary: int, n_layer: int, n_head: int, n_embd: int, block: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, n_embd)
        self.position = nn.Embedding(block, n_embd)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(n_head, n_embd, dropout) for _ in range(n_layer)))
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocabulary, bias=False)
        self.head.weight = self.token.weight
        self.apply(_initialise)
        for name, value in self.named_parameters():
            if name.endswith(("attended.weight", "down.weight")):  # GPT-2: the residual stream keeps its scale
                nn.init.normal_(value, std=INIT_STD / (2 * n_layer) ** 0.5)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTC = self.dropout(self.token(tokens_BT) + self.position(positions_T))
        return self.head(self.norm(self.blocks(x_BTC)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison] (head)
        nn.init.zeros_(module.bias)
