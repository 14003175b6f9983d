"""Siblings that are joined in another way are another weight: nothing that was kept is theirs."""

from __future__ import annotations

import numpy as np
import pytest
import small_models as small
from graphs import model, weights

from compress_onnx.graph_passes.factorization import make_method
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.pipeline.files.original import open_original

GRAPH = """g (float[N,16] x) => (float[N,16] y) {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) qk = Mul(q, k) y = Mul(qk, v)
}"""


@pytest.mark.parametrize("extended", [False, True])
def test_each_group_has_a_decomposition_of_its_own(tmp_path, extended):
    arrays = weights(wq=(16, 16), wk=(16, 16), wv=(16, 16))
    original = open_original(small.save(model(GRAPH, arrays), tmp_path / "model.onnx"))
    names = [site.name for site in original.table.sites]
    kept, svd = Decompositions(), make_method("svd")
    for group in (names[:2], names, names[1:]):
        if extended:
            kept = kept.extended({})
        (joined,) = [site for site in original.joined([group]).table.sites if site.siblings]
        found = kept.of(svd, [joined]).factorize(4)
        assert found.product().shape == (16, 16 * len(group))
        assert len(kept.least([joined])) == 17
        wanted = np.hstack([original_weight(original, name) for name in group])
        exact = np.linalg.svd(wanted.astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(kept.least([joined])[4], np.sum(exact[4:] ** 2), rtol=1e-6)


def original_weight(original, name):
    return next(s for s in original.table.sites if s.name == name).weight.array()
