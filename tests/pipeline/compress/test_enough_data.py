"""Too little data looks perfect on itself, and is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.enough_data import too_few_rows
from compress_onnx.pipeline.compress.holdout import hold_out
from compress_onnx.pipeline.compress.learn import learn
from compress_onnx.pipeline.evidence.collected import Evidence
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.runtime.samples import every_nth

FEATURES = (24, 32, 16)


def studied(tmp_path, count, sequential=False):
    """What is made of ``count`` samples of three rows each."""
    path = saved(tmp_path, two_layers(FEATURES)[0])
    request = CompressionSpec(
        method=MethodSpec(name="asvd"), rank=6, rank_multiple=1, sequential=sequential
    )
    return learn(path, samples(FEATURES[0], count=count)).compress(request)


def measured(made, stats):
    """The error on other samples, of statistics ``stats``, beside that on its own."""
    return replace(made, unseen=Decompositions(stats)).evaluated()


def on_others(made):
    others = samples(FEATURES[0], count=100, seed=9)
    return measured(made, Evidence(made.basis.original, others, RunSettings()).stats)


def test_few_rows_have_no_error_on_themselves_and_a_large_one_on_others(tmp_path):
    made = studied(tmp_path, 1)
    plan = on_others(made)
    itself, other = plan.error, plan.held_out_error
    assert itself.reached < 1e-5
    assert other.metric == "activation"
    assert other.reached > 0.3
    assert other.bound <= other.reached


def test_many_rows_have_the_same_error_on_others(tmp_path):
    for sequential in (False, True):
        made = studied(tmp_path, 400, sequential)
        plan = on_others(made)
        itself, other = plan.error, plan.held_out_error
        assert abs(other.reached / itself.reached - 1) < 0.1


def test_on_its_own_samples_nothing_changes(tmp_path):
    made = studied(tmp_path, 50)
    plan = measured(made, made.basis.stats)
    assert plan.held_out_error.reached == pytest.approx(plan.error.reached, rel=1e-9)
    assert plan.held_out_error.bound == pytest.approx(plan.error.bound, rel=1e-6)


def test_notes_count_rows_against_ranks_and_features(tmp_path):
    notes = {}
    for count in (1, 5, 20):  # 3, 15 and 60 rows, for rank 6 and 24 or 32 features
        made = studied(tmp_path, count)
        notes[count] = too_few_rows(made.basis.original.table, made.plan, made.basis.stats)
    (below_rank,), (below_width,) = notes[1], notes[5]
    assert "2 weights have fewer rows than their rank (the worst first: 3 for rank 6)" in below_rank
    assert "2 weights have fewer rows than input features" in below_width
    assert notes[20] == ()


def test_weights_without_statistics_are_not_counted(tmp_path):
    made = studied(tmp_path, 1)
    assert too_few_rows(made.basis.original.table, made.plan, {}) == ()


def test_any_share_can_be_held_out():
    rest, held_out = hold_out(samples(count=12), 4)
    assert (len(rest), len(held_out)) == (9, 3)
    assert held_out.origin == "arrays, every 4th, held out of calibration"
    assert every_nth(9, 4).nonzero()[0].tolist() == [3, 7]
