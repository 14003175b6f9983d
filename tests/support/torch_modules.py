"""Torch modules with the forms of linear layers that the usual architectures lack."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 32


class Wrapped(nn.Module):
    """A model with positional inputs and one tensor as its output."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], output: str | None) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.output = output

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.output is None:
            return self.model(*inputs)
        settings: dict[str, Any] = {"return_dict": True}
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            settings["use_cache"] = False
        outputs = self.model(**dict(zip(self.names, inputs, strict=True)), **settings)
        return getattr(outputs, self.output)


class PackedAttention(nn.Module):
    """Self-attention whose queries, keys and values come out of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 3 * WIDTH)
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.in_proj(x).split(WIDTH, dim=-1)
        scores = (query @ key.transpose(1, 2)) / WIDTH**0.5
        return x + self.out_proj(scores.softmax(-1) @ value)


class DenseExperts(nn.Module):
    """A mixture of experts in which every expert sees every token, as batched products."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts)
        self.wi = nn.Parameter(torch.randn(experts, WIDTH, 2 * WIDTH) / WIDTH**0.5)
        self.bi = nn.Parameter(torch.randn(experts, 1, 2 * WIDTH))
        self.wo = nn.Parameter(torch.randn(experts, 2 * WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        hidden = functional.gelu(torch.matmul(x.unsqueeze(1), self.wi) + self.bi)
        outputs = torch.matmul(hidden, self.wo)
        return (outputs * gates.permute(0, 2, 1).unsqueeze(-1)).sum(1)


class EinsumExperts(DenseExperts):
    """The same by einsum."""

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        hidden = functional.gelu(torch.einsum("btk,ekn->betn", x, self.wi) + self.bi)
        return torch.einsum("betn,enk,bte->btk", hidden, self.wo, gates)


class LSTMTagger(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(2 * WIDTH, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.tag(self.lstm(torch.tanh(self.embed(x)))[0])


class PointwiseConvolutions(nn.Module):
    """Linear layers over channels, written as convolutions, beside a real linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(8, 48, 1)
        self.project = nn.Conv2d(48, 40, 1, bias=False)
        self.head = nn.Linear(40, 24)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.project(functional.relu(self.expand(image))).mean((2, 3)))


class TiedHead(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, WIDTH)
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.dense(self.embedding(input_ids)))
        return functional.linear(hidden, self.embedding.weight)


class Functional(nn.Module):
    """Weight on the left, scaled products, a shared weight, residuals around linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(24, WIDTH))
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(24, 20, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x + self.shared(torch.tanh(self.shared(x)))
        mixed = torch.matmul(self.left, hidden.transpose(1, 2)).transpose(1, 2)
        flat = torch.addmm(mixed.reshape(-1, 24), mixed.reshape(-1, 24), self.square(), alpha=0.5)
        return self.last(flat)

    def square(self) -> Tensor:
        return self.left @ self.left.T
