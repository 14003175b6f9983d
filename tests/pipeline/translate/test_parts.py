"""Encoder–decoders: export in parts, text out of them by ONNX Runtime, compression of all parts."""

from __future__ import annotations

import shutil

import hf_models
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress_onnx.graph_passes.errors import (
    DataError,
    ModelFileError,
    NothingToCompressError,
    RequestError,
)
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec, Selection
from compress_onnx.pipeline.recipe import SourceSpec
from compress_onnx.pipeline.runtime.session import open_session, run
from compress_onnx.pipeline.translate.export_parts import export_encoder_decoder
from compress_onnx.pipeline.translate.generation import (
    DECODER,
    DECODER_MERGED,
    DECODER_WITH_PAST,
    ENCODER,
    TextGenerator,
    decoder_files,
)
from compress_onnx.pipeline.translate.parts import learn_parts, part_samples

pytestmark = pytest.mark.slow
TEXTS = ["w5 w9 w12", "w40", "w7 w7 w8 w30 w31 w32 w33", "w99 w2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("optimum.onnxruntime")
    folder = hf_models.save(hf_models.marian(), tmp_path_factory.mktemp("marian"))
    hf_models.save_words(folder)
    return folder


@pytest.fixture(scope="module")
def parts(checkpoint, tmp_path_factory):
    return export_encoder_decoder(
        checkpoint, SourceSpec(model="tiny", opset=17), tmp_path_factory.mktemp("onnx")
    )


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
    # Greedily the tiny model says the same to all; beams tell texts, and so their order, apart.
    assert beams == 1 or len(set(found)) >= 3
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


@pytest.fixture(scope="module")
def samples(parts):
    rng = np.random.default_rng(0)

    def texts(count: int) -> list[str]:
        lengths = rng.integers(3, 9, size=count)
        return [" ".join(f"w{n}" for n in rng.integers(2, 100, size=k)) for k in lengths]

    return _samples(parts.folder, texts(60), texts(60))


def _samples(folder, sources, targets):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(sources, padding=True, return_tensors="np")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    return part_samples(folder, inputs, tokenizer(targets)["input_ids"], start_token=0)


def _factored(plan):
    return {site.weight: site for site in plan.factored}


def test_the_decoder_is_given_beginnings_without_padding(parts, samples):
    decoder = samples.decoder.inputs
    assert len(samples.encoder) == 60
    assert 20 < len(samples.decoder) < 60
    assert (decoder["input_ids"][:, 0] == 0).all()
    assert (decoder["input_ids"][:, 1:] > 1).all()  # neither padding nor the end
    assert decoder["input_ids"].shape[1] != decoder["encoder_attention_mask"].shape[1]
    padded = decoder["encoder_attention_mask"] == 0
    assert padded.any()
    assert not decoder["encoder_hidden_states"][padded].any()
    assert decoder["encoder_hidden_states"][~padded].any(axis=-1).all()


@pytest.mark.parametrize("sequential", [False, True])
def test_at_full_rank_compressed_parts_say_the_same(parts, samples, tmp_path, sequential):
    request = CompressionSpec(
        method=MethodSpec(name="asvd"), rank=32, allow_larger=True, sequential=sequential
    )
    plans = learn_parts(parts.folder, samples).compress(request, tmp_path)
    # A layer of the decoder has 4 + 4 products of attention and 2 others; after the layers comes
    # that with the vocabulary. The branch with past has all but the 2 of the encoder's output.
    assert len(plans.encoder.factored) == 6
    assert len(_factored(plans.decoder)) == 21
    assert len(plans.decoder.factored) == 21 + 17
    assert _step_error(parts.folder, tmp_path) < 1e-3
    before, after = (
        TextGenerator(folder).generate(TEXTS, beams=3, max_new_tokens=12)
        for folder in (parts.folder, tmp_path)
    )
    assert after == before


def test_both_branches_of_the_decoder_get_the_calibrated_factors(parts, samples, tmp_path):
    request = CompressionSpec(method=MethodSpec(name="asvd"), params=0.5)
    learned = learn_parts(parts.folder, samples)
    plans = learned.compress(request, tmp_path)
    assert plans.decoder.parameters_after <= 0.5 * plans.decoder.parameters_before
    assert not learned.notes  # the mask is the source's: nothing that the decoder reads is padded
    for site in (*plans.encoder.factored, *plans.decoder.factored):
        assert site.error is not None
        assert site.error.activation == pytest.approx(site.error.bound, rel=1e-3)
    svd = CompressionSpec(method=MethodSpec(name="svd"), params=0.5)
    (tmp_path / "svd").mkdir()
    learn_parts(parts.folder).compress(svd, tmp_path / "svd")
    ours, theirs = (_step_error(parts.folder, folder) for folder in (tmp_path, tmp_path / "svd"))
    assert 0 < ours < theirs


def test_both_branches_of_the_decoder_lose_the_same_neurons(parts, samples, tmp_path):
    request = CompressionSpec(
        method=MethodSpec(name="auto"), params=0.6, ffns="neurons", siblings="never"
    )
    plans = learn_parts(parts.folder, samples).compress(request, tmp_path)
    thinned = plans.decoder.thinned
    assert len(thinned) == 4  # 2 layers, each in both branches
    assert len({site.ffn for site in thinned}) == 4
    assert len({(site.weight, site.neurons) for site in thinned}) == 2
    # Weights are there once: no less is left out than the plan says.
    sizes = [
        sum(t.nbytes for t in _tensors(folder / DECODER_MERGED))
        for folder in (parts.folder, tmp_path)
    ]
    assert sizes[1] <= sizes[0] - 4 * 0.35 * plans.decoder.parameters_before
    assert 0 < _step_error(parts.folder, tmp_path) < 1


def test_more_neurons_are_nearer_to_the_original(parts, samples, tmp_path):
    learned = learn_parts(parts.folder, samples)
    errors = []
    for share in (0.9, 0.5):
        folder = tmp_path / str(share)
        folder.mkdir()
        request = CompressionSpec(method=MethodSpec(name="auto"), params=share, ffns="neurons")
        learned.compress(request, folder)
        errors.append(_step_error(parts.folder, folder))
    assert 0 < errors[0] < errors[1]


def _tensors(path):
    return [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]


def _step_error(reference, candidate):
    """How far the logits of a token are off after a token with past key values."""
    rng = np.random.default_rng(1)
    feeds = {
        "encoder_attention_mask": np.ones((4, 6), np.int64),
        "encoder_hidden_states": _hidden(reference, rng.integers(2, 100, size=(4, 6))),
    }
    first, second = rng.integers(2, 100, size=(2, 4, 1))
    logits = []
    for folder in (reference, candidate):
        session = open_session(folder / DECODER_MERGED)
        empty = {
            value.name: np.zeros((4, 4, 0, 8), np.float32)
            for value in session.get_inputs()
            if value.name.startswith("past")
        }
        start = {**feeds, **empty, "input_ids": first, "use_cache_branch": np.array([False])}
        present = run(session, start)
        past = {n.replace("present", "past_key_values"): v for n, v in present.items()}
        past = {name: past[name] for name in empty}
        step = {**feeds, **past, "input_ids": second, "use_cache_branch": np.array([True])}
        logits.append(run(session, step)["logits"])
    return np.linalg.norm(logits[1] - logits[0]) / np.linalg.norm(logits[0])


def _hidden(folder, ids):
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return run(open_session(folder / ENCODER), feeds)["last_hidden_state"]


def test_what_is_excluded_need_be_in_one_part_only(parts, tmp_path):
    request = CompressionSpec(
        method=MethodSpec(name="svd"), params=0.5, select=Selection(exclude=("lm_head", "*.0.fc1"))
    )
    plans = learn_parts(parts.folder).compress(request, tmp_path)
    names = {site.site for plan in (plans.encoder, plans.decoder) for site in plan.factored}
    assert len(plans.encoder.factored) == 5
    assert "model.decoder.layers.1.fc1" in names
    assert not any("lm_head" in name or ".0.fc1" in name for name in names)
    nowhere = request.model_copy(update={"select": Selection(exclude=("nowhere",))})
    with pytest.raises(RequestError, match="'nowhere' matches no linear site"):
        learn_parts(parts.folder).compress(nowhere, tmp_path)


def test_a_decoder_with_other_weights_is_not_compressed(parts, tmp_path):
    folder = shutil.copytree(parts.folder, tmp_path / "copy")
    model = onnx.load(folder / DECODER_MERGED)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(array * np.float32(2), tensor.name))
    onnx.save(model, folder / DECODER_MERGED)
    with pytest.raises(NothingToCompressError, match="has no such weight"):
        learn_parts(folder).compress(
            CompressionSpec(method=MethodSpec(name="svd"), params=0.5), tmp_path
        )


def test_texts_and_translations_must_fit(parts):
    with pytest.raises(DataError, match="2 texts with 1 translations"):
        _samples(parts.folder, ["w5", "w6"], ["w7"])
    with pytest.raises(DataError, match="too short"):
        _samples(parts.folder, ["w5", "w6"], ["", ""])
