"""The trained digits ViT in the repository: small, accurate, and fit for low rank."""

import json
from pathlib import Path

import numpy as np
import pytest

from models.data.digits import digit_images

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "models" / "digits-vit"


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    return transformers.ViTForImageClassification.from_pretrained(FOLDER).eval()


def test_weights_are_small_and_load_as_float32(model):
    assert (FOLDER / "model.safetensors").stat().st_size <= 2_000_000
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float32"
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}


def test_accuracy_on_held_out_digits(model):
    assert accuracy(model) >= 0.97


def test_dimensions_and_spectra_leave_something_to_low_rank(model):
    """Rank 1 must ruin the model, or its low-rank results would mean nothing."""
    torch = pytest.importorskip("torch")
    assert model.config.hidden_size >= 128
    assert model.config.num_hidden_layers >= 4
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for module in model.vit.encoder.modules():
            if isinstance(module, torch.nn.Linear):
                u, s, v = torch.linalg.svd(module.weight, full_matrices=False)
                module.weight.copy_(s[0] * torch.outer(u[:, 0], v[0]))
    damaged = accuracy(model)
    model.load_state_dict(dense)
    assert damaged < 0.5


def test_image_processor_scales_like_the_recipe_data():
    transformers = pytest.importorskip("transformers")
    datasets = pytest.importorskip("sklearn.datasets")
    processor = transformers.AutoImageProcessor.from_pretrained(FOLDER)
    images = list(datasets.load_digits().images.astype(np.uint8)[..., None])
    pixels = processor(images, return_tensors="np", input_data_format="channels_last")
    ours = np.concatenate([digit_images(split)[0] for split in ("train", "validation")])
    assert {image.round(5).tobytes() for image in ours} == {
        image.round(5).astype(np.float32).tobytes() for image in pixels["pixel_values"]
    }


def accuracy(model):
    torch = pytest.importorskip("torch")
    pixels, labels = digit_images("validation")
    with torch.inference_mode():
        predicted = model(pixel_values=torch.from_numpy(pixels)).logits.argmax(dim=-1).numpy()
    return np.mean(predicted == labels)
