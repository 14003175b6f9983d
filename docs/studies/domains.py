"""What shrinkage and recovery are worth on text of other kinds: ``python -m studies.domains PAGE``.

A sentence encoder at half of its linear parameters, calibrated on Python's language reference. Its
metric is pulled towards broader text, or towards the identity, with rising strength; the cosine to
the original is measured in the calibration's own domain and in others. With ``--recover``, what the
chosen strength makes is trained on broader text. Of the broader text two kinds are left out
entirely: the *unseen* domains are of these.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from compress_onnx.graph_passes.planning.request import CompressionSpec, FFNPolicy, Shrinkage
from compress_onnx.pipeline.data.feeds import as_samples
from compress_onnx.pipeline.data.sources import load_samples
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.atomic import atomic_file
from compress_onnx.pipeline.files.cache import ArrayCache, default_folder
from compress_onnx.pipeline.measure.validate import validate
from compress_onnx.pipeline.recipe import (
    DataSpec,
    GeneralTextData,
    PythonData,
    RecoverySpec,
    read_recipe,
)
from compress_onnx.pipeline.recipes.experiment import settings_of
from compress_onnx.pipeline.recipes.single import prepare_model, requested
from compress_onnx.pipeline.recover.recover import Lessons, recover_file
from compress_onnx.pipeline.runtime.environment import environment
from compress_onnx.pipeline.runtime.inputs import load_structure, model_inputs
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.threads import limited

SHARE = 0.5
STRENGTHS = (0.3, 0.6)
STRUCTURES: Mapping[str, FFNPolicy] = {"neurons and low rank": "neurons", "low rank": "factor"}
UNSEEN = ("descriptions", "docstrings")

DOMAINS: Mapping[str, DataSpec] = {
    name: GeneralTextData(kind="general-text", sources=(name,), split="validation", samples=256)
    for name in UNSEEN
}
SEEN: DataSpec = PythonData(
    kind="python", loader="data/verses.py:verses", arguments={"split": "validation"}, limit=256
)
"""What the broader text has too: told, but not part of the worst."""

SENTENCES = 1024
"""Of the broader text, of the library; half as many are verses."""

GENERAL = GeneralTextData(
    kind="general-text",
    sources=("library", "reference"),
    exclude=UNSEEN,
    samples=8192,
)
"""What is trained on beside the verses of the broader text; a part is held out."""


def broader_text(sentences: int) -> dict[str, DataSpec]:
    """By kind: so many of Python's library, half as many verses."""
    return {
        "library": GeneralTextData(
            kind="general-text", sources=("library",), exclude=UNSEEN, samples=sentences
        ),
        "verses": PythonData(
            kind="python",
            loader="data/verses.py:verses",
            arguments={"split": "train"},
            limit=sentences // 2,
        ),
    }


logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One way to compress, and the cosine by domain."""

    structure: str
    shrinkage: Shrinkage | None
    cosines: Mapping[str, float]
    trained: str = ""

    @property
    def worst(self) -> float:
        """Of the calibration's own domain and the unseen ones."""
        return min(cosine for name, cosine in self.cosines.items() if name != "verses")


class Study:
    """An encoder, the broader text, and the sets to measure on.

    Args:
        recipe: of the encoder, in the file ``path``.
        folder: for models.
        sentences: of the broader text's first kind.
    """

    def __init__(self, path: Path, folder: Path, sentences: int) -> None:
        recipe = read_recipe(path)
        settings = settings_of(
            recipe, RunSettings(cache=ArrayCache(default_folder()), allow_code=True)
        )
        recipe = recipe.model_copy(update={"domains": {**DOMAINS, "verses": SEEN}})
        export = folder / "export"
        export.mkdir()
        found = prepare_model(recipe, export, base_dir=path.parent, settings=settings)
        assert found.held_out is not None
        self._experiment, self._base_dir = found, path.parent
        self._candidate = folder / "candidate.onnx"
        self.recipe = recipe
        self.sets = {"reference": found.held_out, **found.domains}
        self.broader = {name: self._samples(spec) for name, spec in broader_text(sentences).items()}
        self._learned = replace(found.learned, broader=self.broader)

    def shrunk(self, strengths: Sequence[float]) -> Iterator[Row]:
        """Each structure as it is, and pulled in each way; nothing without ``strengths``."""
        for structure in STRUCTURES:
            for shrinkage in shrinkages(strengths):
                yield self._row(structure, self._write(structure, shrinkage))

    def recovered(self, seconds: float, start: Shrinkage | None) -> Iterator[Row]:
        """The first structure, pulled as ``start`` says and trained for so long."""
        structure, experiment = next(iter(STRUCTURES)), self._experiment
        chosen = self._write(structure, start)
        yield self._row(structure, chosen)
        report = recover_file(
            experiment.reference,
            self._candidate,
            Lessons(self._lessons()),
            RecoverySpec(budget=seconds),
            seed=experiment.settings.seed,
            spec=experiment.settings.session,
            batch_size=experiment.settings.batch_size,
        )
        done = f"general text, {report.steps} steps, {report.seconds:.0f} s"
        yield self._row(structure, chosen, done)

    def _lessons(self) -> Samples:
        """Both kinds of text that is trained on."""
        parts = [self._samples(GENERAL).inputs, self.broader["verses"].inputs]
        return as_samples(parts, model_inputs(load_structure(self._experiment.reference)))

    def _write(self, structure: str, shrinkage: Shrinkage | None) -> Shrinkage | None:
        """Write the candidate; returns the shrinkage with the strength that it has."""
        request = CompressionSpec(params=SHARE, ffns=STRUCTURES[structure], shrinkage=shrinkage)
        compressed = self._learned.compress(requested(request, self.recipe.metric))
        return compressed.write(self._candidate).shrinkage

    def _row(self, structure: str, shrinkage: Shrinkage | None, trained: str = "") -> Row:
        cosines = {
            name: validate(
                self._experiment.reference,
                self._candidate,
                samples,
                metric=self.recipe.metric,
                spec=self._experiment.settings.session,
            ).metrics["cosine"]
            for name, samples in self.sets.items()
        }
        row = Row(structure, shrinkage, cosines, trained)
        logger.info("%s", _line(row))
        return row

    def _samples(self, spec: DataSpec) -> Samples:
        declared = model_inputs(load_structure(self._experiment.reference))
        return load_samples(
            spec,
            base_dir=self._base_dir,
            tokenizer_dir=self._experiment.exported.tokenizer_dir,
            mask=self.recipe.mask,
            input_names=[value.name for value in declared],
            seed=self.recipe.seed,
            allow_code=True,
            declared=declared,
        )


def shrinkages(strengths: Sequence[float] = STRENGTHS) -> Iterator[Shrinkage | None]:
    """None, then each strength of both kinds; nothing without ``strengths``."""
    if strengths:
        yield None
    for strength in strengths:
        yield Shrinkage(towards="broader", strength=strength)
    for strength in strengths:
        yield Shrinkage(towards="identity", strength=strength)


def pulled(strength: str) -> Shrinkage | None:
    """Towards the broader text: by a number, or as leaving one domain out tells (``auto``)."""
    if strength == "auto":
        return Shrinkage(towards="broader", strength="auto")
    return Shrinkage(towards="broader", strength=float(strength)) if float(strength) else None


def document(
    rows: Sequence[Row], sets: Mapping[str, Samples], broader: Mapping[str, Samples], command: str
) -> Iterator[str]:
    """The page: ``sets`` is what was measured on, ``broader`` what the metric was pulled to."""
    yield "# Other domains"
    yield ""
    yield f"Written by `{command}`; what shrinkage is: `pipeline/evidence/mixture.py`."
    yield ""
    yield (
        "The encoder at 50 % of its linear parameters, calibrated on Python's language reference. "
        "The cosine to the original on sentences that nothing was learned from; *worst* is that of "
        "the reference and the two unseen domains. The installed packages decide what the domains "
        "are, so figures differ from machine to machine."
    )
    yield ""
    for name, samples in sets.items():
        yield f"- {name}: {len(samples)} of {samples.origin}"
    yield ""
    if any(row.shrinkage and row.shrinkage.towards == "broader" for row in rows):
        parts = (f"{len(samples):,} of {name}" for name, samples in broader.items())
        yield f"Broader text: {' and '.join(parts)}; of Python's library these are docstrings."
    if any(row.trained for row in rows):
        yield (
            f"General text to train on: {GENERAL.samples:,} sentences of "
            f"{', '.join(GENERAL.taken)}, and the verses; batches held out of it decide."
        )
    yield ""
    names = list(sets)
    yield f"| structure | towards | strength | trained on | {' | '.join(names)} | worst |"
    yield f"|:---|:---|---:|:---|{'---:|' * len(names)}---:|"
    yield from (_line(row) for row in rows)
    machine = environment()
    yield ""
    yield f"{machine.processor} ({', '.join(machine.instruction_sets)}), {machine.cores} cores."


def _line(row: Row) -> str:
    towards = row.shrinkage.towards if row.shrinkage else "none"
    strength = row.shrinkage.strength if row.shrinkage else 0
    cosines = " | ".join(f"{cosine:.4f}" for cosine in row.cosines.values())
    how = f"{row.structure} | {towards} | {strength} | {row.trained}"
    return f"| {how} | {cosines} | {row.worst:.4f} |"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("models/minilm.yaml"))
    parser.add_argument("--strengths", type=float, nargs="*", default=STRENGTHS)
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="of the broader text")
    parser.add_argument("--recover", type=float, metavar="SECONDS", help="also train for so long")
    parser.add_argument("--start", default="auto", help="strength of what is trained, or auto")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logger.setLevel(logging.INFO)
    with limited(), TemporaryDirectory(prefix="compress-onnx-") as folder:
        study = Study(given.recipe, Path(folder), given.sentences)
        rows = list(study.shrunk(given.strengths))
        if given.recover:
            rows += study.recovered(given.recover, pulled(given.start))
    command = f"make domains RECIPE={given.recipe}"
    if tuple(given.strengths) != STRENGTHS:
        command += f" STRENGTHS='{' '.join(map(str, given.strengths))}'"
    if given.sentences != SENTENCES:
        command += f" SENTENCES={given.sentences}"
    if given.recover:
        command += f" RECOVER={given.recover:.0f} START={given.start}"
    with atomic_file(given.page) as temporary:
        temporary.write_text("\n".join(document(rows, study.sets, study.broader, command)) + "\n")


if __name__ == "__main__":
    main()
