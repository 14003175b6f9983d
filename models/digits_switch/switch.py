"""A small vision transformer with Switch layers (Fedus et al. 2021, arXiv:2101.03961).

With router probabilities p = softmax(x·R) over E experts, a Switch layer sends each token to the
expert e = argmax p only, and scales what comes back: y = p_e·FFN_e(x). It is written densely here:
with d_e = 1 for the tokens of expert e and 0 for all others,

    y = Σ_e d_e·p_e·FFN_e(d_e·x)

so that it exports to standard operators; the price is that every expert runs over all tokens. The
same weights come in two layouts: ``stacked``, one batched MatMul with weights [E, K, N], and
``separate``, a MatMul an expert. Both functions are sources of a recipe.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).with_name("model.safetensors")
IMAGE, PATCH, CLASSES = 8, 2, 10
WIDTH, HEADS, LAYERS = 128, 4, 4
EXPERTS, HIDDEN = 4, 256
POSITIONS = (IMAGE // PATCH) ** 2 + 1


class StackedLinear(nn.Module):
    """E linear layers side by side: ``[E, tokens, K]`` to ``[E, tokens, N]``."""

    def __init__(self, experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(experts, 1, out_features))
        nn.init.normal_(self.weight, std=in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Each expert's product with its own part of ``x``."""
        return torch.matmul(x, self.weight) + self.bias


class StackedExperts(nn.Module):
    """All experts of a Switch layer, their weights in two stacks."""

    def __init__(self) -> None:
        super().__init__()
        self.wi = StackedLinear(EXPERTS, WIDTH, HIDDEN)
        self.wo = StackedLinear(EXPERTS, HIDDEN, WIDTH)

    def forward(self, sent: Tensor) -> Tensor:
        """``[E, tokens, WIDTH]`` to the same."""
        return self.wo(functional.gelu(self.wi(sent)))


class FeedForward(nn.Module):
    """An ordinary feed-forward network, also a single expert."""

    def __init__(self) -> None:
        super().__init__()
        self.wi = nn.Linear(WIDTH, HIDDEN)
        self.wo = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., WIDTH]`` to the same."""
        return self.wo(functional.gelu(self.wi(x)))


class SeparateExperts(nn.ModuleList):
    """All experts of a Switch layer, each with weights of its own."""

    def __init__(self) -> None:
        super().__init__(FeedForward() for _ in range(EXPERTS))

    def forward(self, sent: Tensor) -> Tensor:
        """``[E, tokens, WIDTH]`` to the same."""
        return torch.stack([expert(x) for expert, x in zip(self, sent.unbind(), strict=True)])


class Switch(nn.Module):
    """A Switch layer around ``experts``.

    Attributes:
        imbalance: after a call in training, E·Σ f_e·P_e with the share f_e of the tokens that went
            to expert e and its mean probability P_e; 1 where the load is balanced (equation 4 of
            the paper).
    """

    def __init__(self, experts: StackedExperts | SeparateExperts) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = experts
        self.imbalance = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, WIDTH]`` to the same."""
        tokens = x.flatten(0, 1)
        probabilities = self.router(tokens).softmax(dim=-1)
        chosen = (probabilities == probabilities.amax(dim=-1, keepdim=True)).to(x.dtype)
        if self.training:
            self.imbalance = EXPERTS * (chosen.mean(dim=0) * probabilities.mean(dim=0)).sum()
        sent = chosen.T.unsqueeze(-1) * tokens
        gates = (chosen * probabilities).T.unsqueeze(-1)
        return (self.experts(sent) * gates).sum(dim=0).view_as(x)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, WIDTH]`` to the same."""
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward network, with dropout on both."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.ffn = Attention(), ffn
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, WIDTH]`` to the same."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.ffn(self.norm2(x)))


class DigitsSwitch(nn.Module):
    """A vision transformer in which every other feed-forward network is a Switch layer."""

    def __init__(self, experts: type[StackedExperts | SeparateExperts] = StackedExperts) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, kernel_size=PATCH, stride=PATCH)
        self.start = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, POSITIONS, WIDTH) * 0.02)
        self.layers = nn.ModuleList(
            Layer(Switch(experts()) if number % 2 else FeedForward()) for number in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """``logits`` [B, 10] of images [B, 1, 8, 8]."""
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = (
            torch.cat([self.start.expand(patches.shape[0], -1, -1), patches], dim=1)
            + self.positions
        )
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.classifier(self.norm(x[:, 0]))}

    @property
    def switches(self) -> list[Switch]:
        """The Switch layers."""
        return [module for module in self.modules() if isinstance(module, Switch)]


def stacked() -> tuple[DigitsSwitch, dict[str, Tensor]]:
    """The trained model with stacks of experts, and an input to trace it with."""
    model = DigitsSwitch(StackedExperts)
    model.load_state_dict(_weights())
    return model, _example()


def separate() -> tuple[DigitsSwitch, dict[str, Tensor]]:
    """The same with a MatMul an expert."""
    model = DigitsSwitch(SeparateExperts)
    weights: dict[str, Tensor] = {}
    for name, tensor in _weights().items():
        before, experts, after = name.partition(".experts.")
        if not experts:
            weights[name] = tensor
            continue
        for number, matrix in enumerate(tensor):
            # nn.Linear stores [N, K] and the bias [N].
            part = matrix.T.contiguous() if after.endswith("weight") else matrix[0]
            weights[f"{before}.experts.{number}.{after}"] = part
    model.load_state_dict(weights)
    return model, _example()


def _weights() -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}


def _example() -> dict[str, Tensor]:
    return {"pixel_values": torch.zeros(2, 1, IMAGE, IMAGE)}
