"""Made-up inputs: ids stay in their tables, masks are padded, all else runs."""

from __future__ import annotations

import numpy as np
import onnx
import small_models as small
from graphs import model, weights

from compress_onnx.pipeline.runtime.generated import generated_samples
from compress_onnx.pipeline.runtime.session import open_session, run

TABLES = """g (int64[b,s] words, int64[b,s] kinds, int64[b,s] other) => (float[b,s,4] y) {
    w = Gather(large, words)
    c = Cast<to = 6>(kinds)
    k = Gather(tiny, c)
    f = Cast<to = 1>(other)
    u = Unsqueeze(f, axes)
    t = Add(w, k)
    y = Add(t, u)
}"""


def test_ids_are_of_the_whole_table_and_no_more():
    named = weights(large=(1000, 4), tiny=(2, 4)) | {"axes": np.array([2])}
    made = model(TABLES, named)
    samples = generated_samples(made, batch=20, length=50, seed=0)
    words, kinds = samples.inputs["words"], samples.inputs["kinds"]
    assert 900 < words.max() < 1000
    assert set(np.unique(kinds)) == {0, 1}
    run(open_session(made.SerializeToString()), samples.inputs)


def test_masks_end_in_padding():
    samples = generated_samples(small.encoder(), batch=4, length=6, seed=0)
    assert samples.mask_name == "attention_mask"
    assert samples.inputs["attention_mask"].sum(1).tolist() == [6, 5, 4, 3]
    whole = generated_samples(small.encoder(), batch=4, length=2, seed=0, padded=False)
    assert whole.inputs["attention_mask"].all()
    short = generated_samples(small.encoder(), batch=4, length=2, seed=0)
    assert short.inputs["attention_mask"].sum(1).min() == 1


def test_weights_need_not_be_there(tmp_path):
    path = small.save_external(small.encoder(), tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").unlink()
    structure = onnx.load(path, load_external_data=False)
    ids = generated_samples(structure, batch=8, length=32, seed=0).inputs["input_ids"]
    assert 10 < ids.max() < small.VOCABULARY
