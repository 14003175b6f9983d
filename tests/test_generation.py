"""Encoder–decoders: their export in parts, and text out of them by ONNX Runtime."""

from __future__ import annotations

import shutil

import hf_models
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graph_passes.errors import DataError, ModelFileError
from pipeline.export.encoder_decoder import export_encoder_decoder
from pipeline.generation import (
    DECODER,
    DECODER_MERGED,
    DECODER_WITH_PAST,
    ENCODER,
    TextGenerator,
    decoder_files,
)
from pipeline.recipe import SourceSpec

pytestmark = pytest.mark.slow
TEXTS = ["w5 w9 w12", "w40", "w7 w7 w8 w30 w31 w32 w33", "w99 w2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("optimum.onnxruntime")
    folder = hf_models.save(hf_models.marian(), tmp_path_factory.mktemp("marian"))
    _save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def parts(checkpoint, tmp_path_factory):
    return export_encoder_decoder(
        checkpoint, SourceSpec(model="tiny", opset=17), tmp_path_factory.mktemp("onnx")
    )


def _save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", *(f"w{number}" for number in range(2, hf_models.VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": words[0], "eos_token": words[1]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def _generated_by_torch(checkpoint, texts, **settings):
    import torch
    from transformers import AutoTokenizer, MarianMTModel

    model = MarianMTModel.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = []
    for text in texts:  # one at a time: no padding that could matter
        inputs = tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **settings
            )
        found += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return found


def test_the_parts_compute_together_what_pytorch_computes(parts):
    assert len(parts.report.parity) == 2
    assert all(p.outputs[0].relative_l2 < 1e-4 for p in parts.report.parity)
    assert parts.report.opset == 17


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("merged", [True, False])
def test_onnx_runtime_generates_what_pytorch_generates(parts, checkpoint, tmp_path, beams, merged):
    folder = shutil.copytree(parts.folder, tmp_path / "copy")
    if not merged:
        (folder / DECODER_MERGED).unlink()
    expected = _generated_by_torch(checkpoint, TEXTS, num_beams=beams, max_new_tokens=12)
    done = []
    found = TextGenerator(folder).generate(
        TEXTS, beams=beams, max_new_tokens=12, batch_size=3, progress=done.append
    )
    assert found == expected
    assert len(set(found)) == len(TEXTS)  # else any order would pass
    assert done == [3, 4]


@pytest.mark.parametrize("part", [ENCODER, DECODER_MERGED])
def test_a_damaged_part_changes_the_text(parts, tmp_path, part):
    folder = shutil.copytree(parts.folder, tmp_path / "copy")
    model = onnx.load(folder / part)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim == 2 and array.shape[0] == 32:
            noise = rng.standard_normal(array.shape, dtype=np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array + noise, tensor.name))
    onnx.save(model, folder / part)
    original = TextGenerator(parts.folder).generate(TEXTS, max_new_tokens=12)
    assert TextGenerator(folder).generate(TEXTS, max_new_tokens=12) != original


def test_what_is_missing_is_named(parts, tmp_path):
    folder = shutil.copytree(parts.folder, tmp_path / "copy")
    assert decoder_files(folder) == (DECODER_MERGED,)
    (folder / DECODER_MERGED).unlink()
    assert decoder_files(folder) == (DECODER, DECODER_WITH_PAST)
    (folder / DECODER).unlink()
    with pytest.raises(ModelFileError, match="export the model with past"):
        TextGenerator(folder)
    (folder / ENCODER).unlink()
    with pytest.raises(ModelFileError, match=r"encoder_model\.onnx does not exist"):
        TextGenerator(folder)


def test_no_text_is_refused(parts):
    with pytest.raises(DataError, match="no text"):
        TextGenerator(parts.folder).generate([])


def test_a_model_without_a_decoder_is_refused(tmp_path):
    folder = hf_models.save(hf_models.bert(), tmp_path / "bert")
    with pytest.raises(ModelFileError, match="no encoder–decoder"):
        export_encoder_decoder(folder, SourceSpec(model="bert"), tmp_path)
