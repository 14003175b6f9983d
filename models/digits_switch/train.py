"""Train the small Switch transformer of the digits-switch recipe and save it beside this file.

    python -m models.digits_switch.train

The loss is the cross entropy plus the load-balancing loss of the Switch paper. Nothing is tuned on
the held-out digits. Weights are stored in float16 to keep the repository small; the accuracy is
measured on what was stored, computed in float32.
"""

from __future__ import annotations

import math

import torch
from safetensors.torch import save_file
from torch.nn import functional

from models.data.digits import digit_images
from models.digits_switch.switch import WEIGHTS, DigitsSwitch, stacked

SEED = 0
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 1e-3
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
BALANCE = 0.01
PIXEL_NOISE = 0.1
DISTORTION = 0.06


def augment(pixels: torch.Tensor) -> torch.Tensor:
    """Distort every image ``[B, 1, 8, 8]`` by a random affine map close to none, and add noise."""
    affine = torch.eye(2, 3) + DISTORTION * torch.randn(len(pixels), 2, 3)
    grid = functional.affine_grid(affine, list(pixels.shape), align_corners=False)
    # Beyond the border is background, which is -1 and not 0.
    moved = functional.grid_sample(pixels + 1, grid, align_corners=False) - 1
    return moved + PIXEL_NOISE * torch.randn_like(moved)


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warmup = WARMUP_SHARE * steps
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def imbalance(model: DigitsSwitch) -> torch.Tensor:
    """How unevenly the experts were used in the last call; 1 is even."""
    return torch.stack([switch.imbalance for switch in model.switches]).mean()


def loss_of(model: DigitsSwitch, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, and a price for using the experts unevenly."""
    logits = model(augment(pixels))["logits"]
    task = functional.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
    return task + BALANCE * imbalance(model)


def train(model: DigitsSwitch) -> None:
    """Train ``model`` in place on the augmented training digits."""
    pixels, labels = (torch.from_numpy(array) for array in digit_images("train"))
    steps = EPOCHS * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps)
    )
    model.train()
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        order = torch.randperm(len(labels))[: len(labels) // BATCH * BATCH]
        for batch in order.split(BATCH):
            loss = loss_of(model, pixels[batch], labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * BATCH / len(order)
        if epoch % 10 == 0:
            print(f"epoch {epoch}/{EPOCHS}: loss {total:.3f}, imbalance {imbalance(model):.2f}")


def accuracy(model: DigitsSwitch, split: str) -> float:
    """Share of the digits of ``split`` that ``model`` gets right."""
    pixels, labels = (torch.from_numpy(array) for array in digit_images(split))
    with torch.inference_mode():
        return float((model(pixels)["logits"].argmax(dim=-1) == labels).float().mean())


def main() -> None:
    """Train, save and measure."""
    torch.manual_seed(SEED)
    model = DigitsSwitch()
    train(model)
    save_file({name: tensor.half() for name, tensor in model.state_dict().items()}, WEIGHTS)
    stored, _ = stacked()
    stored.eval()
    print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size:,} bytes")
    print(f"accuracy: train {accuracy(stored, 'train'):.4f}")
    print(f"accuracy: validation {accuracy(stored, 'validation'):.4f}")


if __name__ == "__main__":
    main()
