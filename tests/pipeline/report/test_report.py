import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib import image
from page_factory import profile
from report_factory import (
    make_benchmark,
    make_gate,
    make_optimize,
    make_output,
    make_plan,
    make_report,
    make_site,
    make_spectra,
    make_trial,
)

from compress_onnx.graph_passes.errors import OutputError, RequestError
from compress_onnx.graph_passes.planning.plan import LayerPlan, PlanCost, SiteError
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.sites.find import SkippedNode
from compress_onnx.pipeline.measure.domains import with_domains
from compress_onnx.pipeline.report import (
    draw_pictures,
    formats,
    read_report,
    render_summary,
    write_report,
)
from compress_onnx.pipeline.report.drawing import is_picture_of_ours
from compress_onnx.pipeline.report.markdown import escape, name, printable
from compress_onnx.pipeline.report.page import report_page
from compress_onnx.pipeline.report.pictures import draw_front
from compress_onnx.pipeline.report.sweep import asked
from compress_onnx.pipeline.report.trials import pareto_json
from compress_onnx.pipeline.report.writer import report_json
from compress_onnx.pipeline.results import ValidationReport
from compress_onnx.pipeline.runtime.environment import environment

HOSTILE = [
    "a|b",
    "a\\|b",
    "ends with \\",
    "`code`",
    "``",
    "line\nbreak\r\n| x | y |",
    "<script>alert(1)</script>",
    "<!-- hidden",
    "</details>",
    "[link](javascript:alert(1))",
    "![picture](http://example.org/x.png)",
    "*bold* **bolder** _it_ __IT__ ~~gone~~",
    "$\\frac{1}{0}$",
    "# heading",
    "&lt;b&gt; &#124;",
    "{{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe",
    "\x00\x1b[31m",
    "",
    "   ",
    "x" * 5000,
    "模型.层",
]

parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def tables(markdown):
    """Every table of a Markdown text as rows of cells, each cell a list of inline tokens."""
    found, inside = [], False
    for token in parser.parse(markdown):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and inside:
            found[-1][-1].append(token.children)
        inside = token.type in ("th_open", "td_open")
    return found


def text_of(inline):
    return "".join(token.content for token in inline)


def table_with(markdown, header):
    return next(t for t in tables(markdown) if [text_of(c) for c in t[0]][: len(header)] == header)


def cells(markdown, *header):
    return [[text_of(cell) for cell in row] for row in table_with(markdown, list(header))[1:]]


# JSON


def test_json_round_trip(tmp_path):
    report = make_report()
    write_report(report, tmp_path / "new" / "run")
    assert read_report(tmp_path / "new" / "run") == report
    text = (tmp_path / "new" / "run" / "report.json").read_text()
    assert text.startswith('{\n  "schema_version": 1,')


def damaged_report():
    """The report of a model whose outputs are all NaN."""
    return make_report(
        plan=make_plan(sites=(make_site(error=SiteError(weight=math.inf, bound=math.nan)),)),
        validation=ValidationReport(
            samples=4,
            origin="x",
            outputs=(
                make_output(max_abs=math.inf, relative_l2=math.nan, cosine=math.nan, snr_db=None),
                make_output("equal", max_abs=0, relative_l2=0, cosine=1, snr_db=None),
            ),
            metrics={"cosine": math.nan, "drop": -math.inf},
        ),
        gates=(make_gate(value=math.nan, passed=False),),
    )


def test_what_is_not_finite_is_valid_json_and_survives(tmp_path):
    write_report(damaged_report(), tmp_path)
    text = (tmp_path / "report.json").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(text, parse_constant=refuse)
    assert document["validation"]["outputs"][0]["max_abs"] == "Infinity"
    assert document["validation"]["outputs"][0]["snr_db"] is None
    report = read_report(tmp_path)
    assert report.validation.outputs[0].max_abs == math.inf
    assert report.validation.metrics["drop"] == -math.inf
    assert math.isnan(report.validation.metrics["cosine"])
    assert math.isnan(report.plan.sites[0].error.bound)
    assert math.isnan(report.gates[0].value)
    assert report_json(report) == text


def test_what_is_not_finite_is_shown(tmp_path):
    summary = render_summary(damaged_report())
    assert summary.startswith("# FAILED: cosine is NaN, must be at least 0.84\n")
    assert cells(summary, "Output", "max abs")[0] == [
        "last_hidden_state",
        "∞",
        "NaN",
        "NaN",
        "equal",
    ]
    assert ["Metric drop", "–", "−∞", "–"] in cells(summary, "", "before")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(surprise=1), "surprise: unknown key"),
        (lambda d: d.pop("size"), "size: this key is required"),
        (lambda d: d.update(schema_version=2), "schema_version"),
        (lambda d: d["plan"]["sites"][0].update(rank="many"), r"plan\.sites\.0\.rank"),
    ],
)
def test_a_damaged_report_is_refused_by_key(tmp_path, change, message):
    document = json.loads(report_json(make_report()))
    change(document)
    (tmp_path / "report.json").write_text(json.dumps(document))
    with pytest.raises(RequestError, match=message):
        read_report(tmp_path)


def test_an_older_report_has_no_profile_and_is_read(tmp_path):
    document = json.loads(report_json(make_report(depth=profile())))
    (tmp_path / "report.json").write_text(json.dumps(document))
    assert read_report(tmp_path).depth == profile()
    del document["depth"]
    (tmp_path / "report.json").write_text(json.dumps(document))
    found = read_report(tmp_path)
    assert found.depth is None
    assert "Along the depth" not in [part.title for part in report_page(found).shown]


def test_no_report_is_one_clear_line(tmp_path):
    with pytest.raises(RequestError, match="name the folder that a run wrote"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_bytes(b"\xff\xfe{")
    for place in (tmp_path, tmp_path / "report.json"):
        with pytest.raises(RequestError, match=r"is no report\.json"):
            read_report(place)
    with pytest.raises(RequestError, match="cannot read"):
        read_report(tmp_path / "other.json")


def test_a_report_is_read_from_its_folder_or_from_any_file(tmp_path):
    write_report(make_report(), tmp_path / "run", pictures=False)
    found = read_report(tmp_path / "run")
    (tmp_path / "run" / "report.json").rename(tmp_path / "baseline.json")
    assert read_report(tmp_path / "baseline.json") == found


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a folder"):
        write_report(make_report(), tmp_path / "file" / "run")
    with pytest.raises(OutputError, match="not a folder"):
        draw_pictures(make_report(), [], tmp_path / "file")


# Summary


def test_the_verdict_comes_first():
    assert render_summary(make_report()).startswith("# PASSED: 1 gate\n")
    assert render_summary(make_report(gates=())).startswith("# PASSED\n")


def test_a_failed_gate_is_named():
    gates = (
        make_gate("size_ratio", 0.5, 0.6, "max"),
        make_gate("cosine", 0.8399999, 0.84, passed=False),
        make_gate("latency_ratio.cpu", 1.02, 1, "max", passed=False),
        make_gate("speedup.cuda", None, 1, passed=False),
    )
    summary = render_summary(make_report(gates=gates))
    assert summary.splitlines()[0] == (
        "# FAILED: cosine is 0.8399999, must be at least 0.84; latency_ratio.cpu is 1.02, "
        "must be at most 1; speedup.cuda was not measured"
    )
    assert [row[3] for row in cells(summary, "Gate")] == ["passed", "FAILED", "FAILED", "FAILED"]
    assert cells(summary, "Gate")[3] == ["speedup.cuda", "≥ 1", "–", "FAILED"]


def test_before_and_after_are_readable():
    rows = cells(render_summary(make_report()), "", "before", "after", "ratio")
    assert rows == [
        ["File size", "90.9 MB", "69.6 MB", "0.766×"],
        ["Parameters", "22,713,216", "17,405,000", "0.766×"],
        ["Selected linear parameters", "10,616,832", "5,271,552", "0.497×"],
        ["Metric cosine", "–", "0.8532", "–"],
        ["Metric neighbour_overlap", "–", "0.5712", "–"],
        ["Metric accuracy", "0.9733", "0.9688", "0.995×"],
        [
            "Latency p50, cpu",
            "12.3 ms",
            "7.54 ms",
            "0.613×, speed-up 1.63× (1.60× to 1.67×), ideal 1.82×",
        ],
    ]


def test_a_predicted_cost_stands_beside_what_was_measured():
    cost = PlanCost(unit="ms", before=8.0, after=5.0)
    rows = cells(render_summary(make_report(plan=make_plan(cost=cost))), "", "before", "after")
    names = [row[0] for row in rows]
    predicted = names.index("Selected linear layers, predicted ms")
    assert rows[predicted][1:] == ["8.000", "5.000", "0.625×"]
    assert "Latency p50, cpu" in names[predicted:]
    assert "predicted" not in render_summary(make_report())


def test_a_sweep_says_what_was_asked_for():
    variants = [CompressionSpec(), CompressionSpec(latency=0.6), CompressionSpec(rank=4)]
    assert [asked(variant) for variant in variants] == ["50%", "60% of latency", "rank 4"]


def test_a_site_says_what_it_became_and_why():
    sites = (
        make_site("a.dense"),
        make_site("head", decision="dense", reason="too small", rank=None, error=None,
                  method=None, parameters_after=1536 * 384),
    )  # fmt: skip
    summary = render_summary(make_report(plan=make_plan(sites=sites)))
    assert cells(summary, "Site") == [
        ["a.dense", "1536×384", "152", "589,824 → 291,840", "0.2134", "0.2133", "factor",
         "rank 152 < 307 = K·N/(K+N)"],
        ["head", "1536×384", "–", "589,824", "–", "–", "dense", "too small"],
    ]  # fmt: skip
    assert "1 factored, 1 left dense, 0 not selected" in summary


def test_the_whole_plan_stands_beside_its_bounds():
    rows = cells(render_summary(make_report()), "Outputs of all sites together")
    assert [row[1] for row in rows] == ["0.2311", "0.2234", "0.1987"]
    plan = make_plan()
    weights = plan.error.model_copy(update={"metric": "weight", "left_out": 2})
    summary = render_summary(make_report(plan=plan.model_copy(update={"error": weights})))
    assert cells(summary, "Weights of all sites together")
    assert "2 selected weights are left out" in summary
    bare = render_summary(make_report(plan=plan.model_copy(update={"error": None})))
    assert "sites together" not in bare


def test_skipped_nodes_are_grouped_and_operators_compared():
    summary = render_summary(make_report())
    assert cells(summary, "Reason") == [
        ["both operands are computed", "2", "qk_0"],
        ["alpha is not 1", "1", "conv"],
    ]
    assert cells(summary, "Operator") == [["MatMul", "36", "72"]]


def test_a_bare_report_has_no_empty_sections():
    summary = render_summary(
        make_report(
            export=None, calibration=None, validation=None, benchmarks=(), gates=(), op_counts={},
            unmeasured={}, timings_s={}, notes=(), plan=make_plan(sites=(), skipped=()),
        )
    )  # fmt: skip
    headings = [line for line in summary.splitlines() if line.startswith("## ")]
    assert headings == ["## Sites", "## Environment"]
    assert ["Selected linear parameters", "0", "0", "–"] in cells(summary, "", "before")


def test_providers_that_were_not_measured_are_mentioned():
    summary = render_summary(make_report(benchmarks=(), unmeasured={"cuda": "no device"}))
    assert "Not measured on cuda: no device" in summary


def test_batch_invariance_and_further_providers_are_rows():
    report = make_report()
    measured = {"batch_invariance": 0.98, "batch_invariance_reference": 1.0}
    other = report.validation.model_copy(update={"provider": "cuda", "metrics": {"cosine": 0.5}})
    validation = report.validation.model_copy(
        update={**measured, "elsewhere": (other,), "unmeasured": {"q|": "no | batch"}}
    )
    summary = render_summary(make_report(validation=validation))
    rows = cells(summary, "", "before")
    assert ["Metric batch_invariance", "1.000", "0.9800", "0.980×"] in rows
    assert ["Metric cosine.cuda", "–", "0.5000", "–"] in rows
    outputs = [row[0] for row in cells(summary, "Output")]
    assert outputs == ["last_hidden_state, cpu", "last_hidden_state, cuda"]
    assert "no \\| batch" in summary


def with_domain(name, origin):
    main = make_report().validation
    domain = main.model_copy(update={"metrics": {**main.metrics, "cosine": 0.5}, "origin": origin})
    return make_report(validation=with_domains(main, {name: domain}))


def test_domains_are_columns_and_so_is_the_worst():
    report = with_domain("verses", "verses of a book")
    summary = render_summary(report)
    (header, *rows) = table_with(summary, ["Figure"])
    assert [text_of(cell) for cell in header] == ["Figure", "validation", "verses", "worst"]
    assert ["cosine", "0.8532", "0.5000", "0.5000"] in cells(summary, "Figure")
    assert [text_of(row[0]) for row in rows][-3:] == ["max_abs", "relative_l2", "min_output_cosine"]
    assert "- `verses`: 512 samples of verses of a book\n" in summary
    assert "Figure" not in render_summary(make_report())
    assert "verses: " not in str(make_report().validation)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_domains_stay_text(text):
    summary, ordinary = (render_summary(with_domain(name, name)) for name in (text, "s"))
    assert structure(summary) == structure(ordinary)
    assert len(summary.splitlines()) == len(ordinary.splitlines())


def test_a_gate_that_was_not_measured_says_why():
    gate = make_gate("batch_invariance", value=None, passed=False)
    reasons = ((None, "was not measured"), ("fixed | batch", "was not measured (fixed \\| batch)"))
    for reason, text in reasons:
        told = gate.model_copy(update={"reason": reason})
        title = render_summary(make_report(gates=(told,))).splitlines()[0]
        assert title.endswith(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_cannot_break_the_summary(text):
    sites = (make_site(text, reason=text), make_site("next"))
    skipped = (SkippedNode(node=text, op_type="MatMul", reason=text),)
    report = make_report(
        plan=make_plan(sites=sites, skipped=skipped),
        op_counts={"reference": {text: 1}, "candidate": {}},
        notes=(text.strip() or "s", "another note"),
        command=text,
        gates=(make_gate(text, passed=False),),
    )
    summary = render_summary(report)
    ordinary = render_summary(
        make_report(
            plan=make_plan(
                sites=(make_site("s", reason="s"), make_site("next")),
                skipped=(SkippedNode(node="s", op_type="MatMul", reason="s"),),
            ),
            op_counts={"reference": {"s": 1}, "candidate": {}},
            notes=("s", "another note"),
            command="s",
            gates=(make_gate("s", passed=False),),
        )
    )
    assert structure(summary) == structure(ordinary)
    assert len(summary.splitlines()) == len(ordinary.splitlines())
    site, _, *_, reason = cells(summary, "Site")[0]
    assert reason == printable(text).strip()
    assert site == (reason or "(no name)") or (len(text) > 120 and "…" in site)


def structure(markdown):
    """The block structure, and whatever inline token is neither text nor code."""
    tokens = parser.parse(markdown)
    inline = [c.type for t in tokens for c in t.children or () if c.type not in ALLOWED]
    return [t.type for t in tokens], inline


ALLOWED = {"text", "code_inline", "text_special"}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_anything_in_a_cell_reads_back_as_it_was(text):
    line = printable(text).strip()
    for make, expected in ((escape, line), (name, line or "(no name)")):
        table = f"| a | b |\n|---|---|\n| {make(text)} | end |\n"
        ((_, (cell, end)),) = tables(table)
        assert text_of(cell) == expected
        assert text_of(end) == "end"
        assert {token.type for token in cell} <= ALLOWED


def test_lone_surrogates_can_be_written():
    assert printable("a\udcffb").encode() == "a\ufffdb".encode()


# Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.0, "1.000"),
        (0.99996, "1.000"),
        (0.85321, "0.8532"),
        (0.00123456, "0.001235"),
        (1.2345e-7, "1.2e-07"),
        (12345.6, "12,346"),
        (-0.5, "-0.5000"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "NaN"),
    ],
)
def test_significant(value, text):
    assert formats.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_999, "1.00 MB"),
        (90_868_373, "90.9 MB"),
        (2_147_483_648, "2.15 GB"),
        (5_000_000_000_000, "5,000 GB"),
    ],
)
def test_size(value, text):
    assert formats.size(value) == text


# Pictures


def test_pictures_are_drawn_and_shown(tmp_path):
    plan = make_plan(50)
    write_report(make_report(plan=plan), tmp_path, make_spectra(plan))
    names = ["before-and-after.png", "error-against-rank.png", "explained-variance.png"]
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == names
    summary = (tmp_path / "summary.md").read_text()
    for picture in names:
        assert f"](pictures/{picture})" in summary
        pixels = image.imread(tmp_path / "pictures" / picture)
        assert pixels.shape[1] > pixels.shape[0] > 200
        assert np.ptp(pixels[..., :3]) > 0.9


def test_pictures_without_anything_to_show_are_left_out(tmp_path):
    assert [p.name for p in draw_pictures(make_report(), [], tmp_path)] == ["before-and-after.png"]


def test_pictures_stand_odd_names_and_figures(tmp_path):
    sites = tuple(make_site(text, group=text) for text in ("$\\frac", "_hidden", "a\nb\x00", "层"))
    plan = make_plan(sites=sites)
    spectra = make_spectra(plan)
    odd = [
        type(s)(s.site, s.group, s.weight_tail * scale, None, s.rank, reached)
        for s, scale, reached in zip(
            spectra, (1, np.nan, 1, 1), (math.inf, math.nan, None, 1), strict=True
        )
    ]
    report = make_report(plan=plan, benchmarks=(make_benchmark(ideal=None),))
    assert len(draw_pictures(report, odd, tmp_path)) == 3


# Environment


def test_the_environment_says_what_runs():
    found = environment()
    assert found.packages["numpy"] == np.__version__
    assert found.cores >= 1
    assert found.processor
    assert "surely-not-installed" not in found.packages


def test_the_summary_says_which_instruction_sets_there_are():
    machine = make_report().environment
    for sets, text in ((("AVX2", "AVX-512 VNNI"), "AVX2, AVX-512 VNNI"), ((), "not known")):
        known = machine.model_copy(update={"instruction_sets": sets})
        summary = render_summary(make_report(environment=known))
        assert f"| Instruction sets | {text} |" in summary


def test_missing_packages_are_left_out(monkeypatch):
    monkeypatch.setattr(
        "compress_onnx.pipeline.runtime.environment.PACKAGES", ("numpy", "not-a-package")
    )
    assert list(environment().packages) == ["numpy"]


# What optimize found


def test_candidates_and_the_verdict_are_in_the_summary(tmp_path):
    report = make_report(optimize=make_optimize(), plan=None)
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report
    summary = (tmp_path / "summary.md").read_text()
    assert "neurons, integers, 50.0% is 1.33 times as fast as dynamic int8." in summary
    rows = cells(summary, "Candidate", "drop")
    assert [row[0] for row in rows][:2] == ["original", "dynamic int8"]
    taken = next(row for row in rows if row[0].endswith("(taken)"))
    assert taken[1] == "0.01500"
    assert taken[5].startswith("2.80×")
    assert taken[7] == "yes"
    assert rows[-1][0] == "broken | one: ONNX Runtime *refuses* it"
    assert "reported on 256 samples of sentences, the half that chose nothing" in summary
    assert "## Sites" not in summary


def test_the_speed_at_each_of_several_shapes_is_in_the_summary(tmp_path):
    at = {"1x16": 4.0, "8x128": 0.97}
    trials = make_optimize().trials
    timed = [t.model_copy(update={"speedup_at": at if t.speedup else {}}) for t in trials]
    found = make_optimize(trials=tuple(timed), inputs="1x16: x 1x16; 8x128: x 8x128")
    report = make_report(optimize=found, plan=None)
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report
    summary = (tmp_path / "summary.md").read_text()
    header, *rows = table_with(summary, ["Candidate", "drop"])
    assert [text_of(cell) for cell in header][5:8] == ["speed-up", "at 1x16", "at 8x128"]
    taken = next(row for row in cells(summary, "Candidate", "drop") if "(taken)" in row[0])
    assert taken[6:8] == ["4.00×", "0.970×"]
    assert taken[9] == "yes"
    assert {len(row) for row in (header, *rows)} == {10}
    assert "at 1x16: x 1x16; 8x128: x 8x128, and their geometric mean." in summary
    points = json.loads((tmp_path / "pareto.json").read_text())["points"]
    assert points[0]["speedup_at"] == at
    assert points[-1]["speedup_at"] == {}


def test_every_layer_of_the_finished_model_is_in_the_summary(tmp_path):
    layers = (
        LayerPlan(
            layer="a|b", node="a", numbers="int8", reason="*fast*", damage=0.25, weight_bytes=2000
        ),
        LayerPlan(layer="c", node="c", numbers="float32", reason="lost", weight_bytes=8, time_ms=2),
    )
    report = make_report(
        optimize=make_optimize(), plan=make_plan().model_copy(update={"layers": layers})
    )
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report
    first, second = cells((tmp_path / "summary.md").read_text(), "Layer", "numbers")
    assert first == ["a|b", "int8", "0.2500", formats.MISSING, "2.00 kB", "*fast*"]
    assert second[1:5] == ["float32", formats.MISSING, "2.000 ms", "8 B"]


def test_the_front_is_drawn_with_every_rival(tmp_path):
    report = make_report(optimize=make_optimize())
    drawn = draw_pictures(report, [], tmp_path)
    assert [picture.name for picture in drawn] == ["before-and-after.png", "front.png"]
    draw_front(report.optimize, tmp_path / "front.svg")
    texts = (tmp_path / "front.svg").read_text()
    for trial in report.optimize.trials:
        named = trial.rival or trial.name == report.optimize.winner
        assert (trial.name in texts) == named, trial.name
    assert is_picture_of_ours(tmp_path / "front.svg")


@pytest.mark.parametrize("drop", [0.0, math.nan, math.inf])
def test_the_front_stands_odd_figures(tmp_path, drop):
    odd = make_optimize(
        max_drop=0.0, trials=(make_trial("$x_1$ <b>", drop, rival=True, speedup=1.0),)
    )
    draw_front(odd, tmp_path / "front.png")
    assert image.imread(tmp_path / "front.png").size
    points = json.loads(pareto_json(odd))["points"]
    assert points[0]["drop"] == {0.0: 0.0, math.inf: "Infinity"}.get(drop, "NaN")
