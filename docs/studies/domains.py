"""What shrinkage is worth on text of other kinds: ``python -m studies.domains docs/domains.md``.

MiniLM at half of its linear parameters, without training, calibrated on Python's language
reference. Its metric is pulled towards broader text, or towards the identity, with rising strength;
the cosine to the original is measured in the calibration's own domain and in others. Of the broader
text two kinds are left out entirely: the *unseen* domains are of these.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from compress_onnx.graph_passes.planning.request import CompressionSpec, FFNPolicy, Shrinkage
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import DataSpec, GeneralTextData, PythonData, read_recipe
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import ModelExperiment, prepare_model, requested
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.samples import Samples

RECIPE = Path("models/minilm.yaml")
SHARE = 0.5
STRENGTHS = (0.1, 0.3, 0.5, 1.0)
STRUCTURES: Mapping[str, FFNPolicy] = {"neurons and low rank": "neurons", "low rank": "factor"}
UNSEEN = ("descriptions", "docstrings")

BROADER: Mapping[str, DataSpec] = {
    "library": GeneralTextData(
        kind="general-text", sources=("library",), exclude=UNSEEN, samples=512
    ),
    "verses": PythonData(
        kind="python", loader="data/verses.py:verses", arguments={"split": "train"}, limit=512
    ),
}
DOMAINS: Mapping[str, DataSpec] = {
    name: GeneralTextData(kind="general-text", sources=(name,), split="validation", samples=256)
    for name in UNSEEN
}
SEEN: DataSpec = PythonData(
    kind="python", loader="data/verses.py:verses", arguments={"split": "validation"}, limit=256
)
"""What the broader text has too: told, but not part of the worst."""

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One way to compress, and the cosine by domain."""

    structure: str
    shrinkage: Shrinkage | None
    cosines: Mapping[str, float]

    @property
    def worst(self) -> float:
        """Of the calibration's own domain and the unseen ones."""
        return min(cosine for name, cosine in self.cosines.items() if name != "verses")


def prepared(folder: Path) -> tuple[ModelExperiment, dict[str, Samples]]:
    """MiniLM with broader sets beside its calibration data, and the sets to measure on."""
    recipe = read_recipe(RECIPE)
    cache = ArrayCache(default_folder())
    settings = settings_of(recipe, RunSettings(cache=cache, allow_code=True))
    recipe = recipe.model_copy(update={"domains": {**DOMAINS, "verses": SEEN}})
    found = prepare_model(recipe, folder, base_dir=RECIPE.parent, settings=settings)
    declared = model_inputs(load_structure(found.reference))
    broader = {
        name: load_samples(
            spec,
            base_dir=RECIPE.parent,
            tokenizer_dir=found.exported.tokenizer_dir,
            mask=recipe.mask,
            input_names=[value.name for value in declared],
            seed=recipe.seed,
            allow_code=True,
            declared=declared,
        )
        for name, spec in BROADER.items()
    }
    assert found.held_out is not None
    sets = {"reference": found.held_out, **found.domains}
    return replace(found, learned=replace(found.learned, broader=broader)), sets


def shrinkages() -> Iterator[Shrinkage | None]:
    """None, then each strength of both kinds."""
    yield None
    for strength in STRENGTHS:
        yield Shrinkage(towards="broader", strength=strength)
    for strength in STRENGTHS:
        yield Shrinkage(towards="identity", strength=strength)


def measured(
    experiment: ModelExperiment, sets: Mapping[str, Samples], folder: Path
) -> Iterator[Row]:
    """Each structure, pulled in each way."""
    for structure, ffns in STRUCTURES.items():
        for shrinkage in shrinkages():
            request = CompressionSpec(params=SHARE, ffns=ffns, shrinkage=shrinkage)
            candidate = folder / "candidate.onnx"
            compressed = experiment.learned.compress(requested(request, experiment.recipe.metric))
            compressed.write(candidate)
            cosines = {
                name: validate(
                    experiment.reference,
                    candidate,
                    samples,
                    metric=experiment.recipe.metric,
                    spec=experiment.settings.session,
                ).metrics["cosine"]
                for name, samples in sets.items()
            }
            row = Row(structure, shrinkage, cosines)
            logger.info("%s", _line(row))
            yield row


def document(rows: Sequence[Row], sets: Mapping[str, Samples], command: str) -> Iterator[str]:
    """The page."""
    yield "# Other domains"
    yield ""
    yield f"Written by `{command}`; what shrinkage is: `pipeline/evidence/mixture.py`."
    yield ""
    yield (
        "MiniLM at 50 % of its linear parameters, without training, calibrated on Python's "
        "language reference. The cosine to the original on sentences that nothing was learned "
        "from; *worst* is that of the reference and the two unseen domains. The installed packages "
        "decide what the domains are, so figures differ from machine to machine."
    )
    yield ""
    for name, samples in sets.items():
        yield f"- {name}: {len(samples)} of {samples.origin}"
    yield ""
    yield "Broader text: docstrings of Python's library and verses, 512 sentences of each."
    yield ""
    names = list(sets)
    yield f"| structure | towards | strength | {' | '.join(names)} | worst |"
    yield f"|:---|:---|---:|{'---:|' * len(names)}---:|"
    yield from (_line(row) for row in rows)


def _line(row: Row) -> str:
    towards = row.shrinkage.towards if row.shrinkage else "none"
    strength = row.shrinkage.strength if row.shrinkage else 0
    cosines = " | ".join(f"{cosine:.4f}" for cosine in row.cosines.values())
    return f"| {row.structure} | {towards} | {strength} | {cosines} | {row.worst:.4f} |"


def main(output: Path) -> None:
    """Measure, and write the page."""
    logging.basicConfig(level=logging.WARNING)
    logger.setLevel(logging.INFO)
    with TemporaryDirectory(prefix="compress-onnx-") as name:
        folder = Path(name)
        (folder / "export").mkdir()
        experiment, sets = prepared(folder / "export")
        rows = list(measured(experiment, sets, folder))
    with atomic_file(output) as temporary:
        temporary.write_text("\n".join(document(rows, sets, "make domains")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
