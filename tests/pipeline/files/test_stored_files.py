"""Files whose factors are rounded: sizes, budgets, repair, sweeps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import small_models as small
from stored import trained

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.graph_passes.factorization import make_method
from compress_onnx.graph_passes.factorization.storage import Storage
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.rewriting.trainable import factors
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.files.model_file import load_model, model_size
from compress_onnx.pipeline.measure.kernel_times import executed_op_counts
from compress_onnx.pipeline.recipe import RecoverySpec
from compress_onnx.pipeline.recipes.sweep import grid
from compress_onnx.pipeline.recover.recover import Lessons, recover
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run

ROUNDED: tuple[Storage, ...] = ("float16", "int8", "int4")


@pytest.fixture
def reference(tmp_path):
    proto = small.perceptron()
    proto.opset_import[0].version = 21
    return small.save(proto, tmp_path / "model.onnx")


def written(reference, store: Storage, **arguments):
    """The compressed file and its plan."""
    output = reference.with_name(f"{store}.onnx")
    spec = CompressionSpec(method=MethodSpec(name="svd"), params=0.5, store=store)
    return output, learn(reference).compress(spec).write(output, **arguments)


class TestFiles:
    @pytest.mark.parametrize("external", [False, True])
    def test_a_file_is_as_much_smaller_as_its_numbers(self, reference, external: bool) -> None:
        floats, plan = written(reference, "same", external_data=external)
        before = model_size(reference, floats)
        for store, bits in (("float16", 16), ("int8", 8), ("int4", 4)):
            output, rounded = written(reference, store, external_data=external)
            onnx.checker.check_model(output, full_check=True)
            size = model_size(reference, output)
            assert rounded.parameters_after == plan.parameters_after
            saved = size.reference_parameters - size.candidate_parameters
            assert saved == -rounded.file_parameters_added
            scales = rounded.file_parameters_added - plan.file_parameters_added
            ranks = sum(site.rank for site in plan.factored)
            assert scales == (0 if store == "float16" else 2 * ranks)
            wanted = plan.parameters_after * (32 - bits) // 8 - 4 * scales
            overhead = wanted - (before.candidate_bytes - size.candidate_bytes)
            assert 0 < overhead < 4000  # names, nodes and what these tell

    def test_factors_of_a_large_model_wait_on_the_disk(self, reference) -> None:
        large = small.save_external(onnx.load(reference), reference.with_name("large.onnx"))
        outputs = [written(path, "int4")[0].read_bytes() for path in (reference,)]
        data = small.save_rows(reference.with_name("rows.npz"))
        feeds = dict(np.load(data))
        expected = run(open_session(outputs[0]), feeds)["y"]
        output, _ = written(large, "int4")
        np.testing.assert_array_equal(run(open_session(output), feeds)["y"], expected)

    @pytest.mark.parametrize("store", ROUNDED)
    def test_onnx_runtime_folds_what_decodes(self, reference, store: Storage) -> None:
        counts = [
            executed_op_counts(written(reference, kind)[0], SessionSpec(threads=1))
            for kind in ("same", store)
        ]
        assert counts[0] == counts[1]

    @pytest.mark.parametrize("store", ROUNDED)
    def test_rounded_factors_are_not_trained(self, reference, store: Storage) -> None:
        output, _ = written(reference, store)
        candidate = load_model(output)
        assert not factors(candidate)
        rows = Samples({"x": np.ones((20, small.FEATURES), np.float32)})
        with pytest.raises(RequestError, match="rounded factors cannot be trained"):
            recover(
                reference,
                candidate,
                Lessons(rows),
                RecoverySpec(budget=None, steps=1),
                data_folder=output.parent,
            )


@pytest.mark.parametrize("store", ["same", *ROUNDED])
def test_a_budget_of_bytes_counts_what_is_stored(reference, store: Storage) -> None:
    output = reference.with_name("small.onnx")
    spec = CompressionSpec(method=MethodSpec(name="svd"), bytes=0.1, store=store, rank_multiple=1)
    plan = learn(reference).compress(spec).write(output)
    weights = sum(
        value.const_value.nbytes
        for name, value in load_model(output).graph.initializers.items()
        if ".lowrank." in name
    )
    dense = 4 * plan.parameters_before
    assert weights == plan.cost.after
    assert 0.06 * dense < weights <= 0.1 * dense


def test_a_sweep_takes_stores_as_an_axis() -> None:
    variants = grid(CompressionSpec(), [], {}, [], ["same", "int8"])
    assert [variant.store for variant in variants] == ["same", "int8"]
    with pytest.raises(RequestError, match="store"):
        grid(CompressionSpec(), [], {}, [], ["int3"])


def test_stacks_are_rounded_matrix_by_matrix() -> None:
    from compress_onnx.graph_passes.factorization.stack import decompose

    matrices = np.stack([trained(seed) * 10.0**seed for seed in range(3)]).astype(np.float32)
    whole = decompose(make_method("svd"), matrices, [None] * 3).factorize(6, "int4")
    for index, matrix in enumerate(matrices):
        alone = make_method("svd").decompose(matrix, None).factorize(6, "int4")
        np.testing.assert_array_equal(whole.terms[0].down[index], alone.terms[0].down)
        np.testing.assert_array_equal(
            whole.terms[0].packed[1].scale[index], alone.terms[0].packed[1].scale
        )
