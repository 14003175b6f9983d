"""Too little data looks perfect on itself, and is found out."""

from __future__ import annotations

from compress_onnx.pipeline.compress.study import Researcher, plan_study
from compress_onnx.pipeline.compress.subject import calibrate_subject, evaluate_plan, open_subject
from tiny_models import samples, saved, two_layers

from compress_onnx.graph_passes.planning.plan import MethodSpec
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.pipeline.compress.enough_data import held_out_errors, too_few_rows
from compress_onnx.pipeline.compress.holdout import hold_out
from compress_onnx.pipeline.runtime.samples import every_nth

FEATURES = (24, 32, 16)


def studied(tmp_path, count, sequential=False):
    """The subject, its study on ``count`` samples of three rows each, the plan, the factors."""
    subject = open_subject(saved(tmp_path, two_layers(FEATURES)[0]))
    researcher = Researcher(subject, samples(FEATURES[0], count=count))
    request = CompressionSpec(
        method=MethodSpec(name="asvd"), rank=6, rank_multiple=1, sequential=sequential
    )
    study = researcher.study(request)
    plan = plan_study(subject, study)
    return subject, study, plan, researcher.factor(plan, study)


def held_out_statistics(subject):
    return calibrate_subject(subject, samples(FEATURES[0], count=100, seed=9)).stats


def test_few_rows_have_no_error_on_themselves_and_a_large_one_on_others(tmp_path):
    subject, study, plan, ready = studied(tmp_path, 1)
    itself = evaluate_plan(subject, plan, study.calibration, ready=ready).error
    other = held_out_errors(subject.table, plan, study.stats, held_out_statistics(subject), ready)
    assert itself.reached < 1e-5
    assert other.error.metric == "activation"
    assert other.error.reached > 0.3
    assert other.error.bound <= other.error.reached
    assert all(site.error.activation is not None for site in other.factored)


def test_many_rows_have_the_same_error_on_others(tmp_path):
    for sequential in (False, True):
        subject, study, plan, ready = studied(tmp_path, 400, sequential)
        itself = evaluate_plan(subject, plan, study.calibration, ready=ready).error
        other = held_out_errors(
            subject.table, plan, study.stats, held_out_statistics(subject), ready
        ).error
        assert abs(other.reached / itself.reached - 1) < 0.1


def test_on_its_own_samples_nothing_changes(tmp_path):
    subject, study, plan, ready = studied(tmp_path, 50)
    itself = evaluate_plan(subject, plan, study.calibration, ready=ready)
    assert held_out_errors(subject.table, plan, study.stats, study.stats, ready) == itself


def test_notes_count_rows_against_ranks_and_features(tmp_path):
    notes = {}
    for count in (1, 5, 20):  # 3, 15 and 60 rows, for rank 6 and 24 or 32 features
        subject, study, plan, _ = studied(tmp_path, count)
        notes[count] = too_few_rows(subject.table, plan, study.stats)
    (below_rank,), (below_width,) = notes[1], notes[5]
    assert "2 weights have fewer rows than their rank (the worst first: 3 for rank 6)" in below_rank
    assert "2 weights have fewer rows than input features" in below_width
    assert notes[20] == ()


def test_weights_without_statistics_are_not_counted(tmp_path):
    subject, _, plan, _ = studied(tmp_path, 1)
    assert too_few_rows(subject.table, plan, {}) == ()


def test_any_share_can_be_held_out():
    rest, held_out = hold_out(samples(count=12), 4)
    assert (len(rest), len(held_out)) == (9, 3)
    assert held_out.origin == "arrays, every 4th, held out of calibration"
    assert every_nth(9, 4).nonzero()[0].tolist() == [3, 7]
