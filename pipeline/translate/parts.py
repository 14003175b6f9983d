"""Compress an encoder–decoder: each weight once, for all the graphs that have it.

An encoder–decoder is several graphs (:mod:`pipeline.translate.generation`). The encoder is
compressed like any model. The decoder is planned on ``decoder_model.onnx``, as all sites are in the
open there, while those of the merged decoder are inside an ``If``, where calibration cannot look:

1. The data are texts with their translations. The encoder reads the texts; the decoder is given the
   beginnings of the translations and what the original encoder makes of the texts.
2. All beginnings have one length, and shorter translations are left out: a decoder looks back only,
   so what it computes for a beginning is what it computes while it generates, without padding.
3. The other decoders have the same weights under other names. A site there is planned as the site
   with an equal weight, of equal content, is; a weight without a counterpart stays dense.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError
from compress_onnx.graph_passes.factorization import ActivationStats
from compress_onnx.graph_passes.planning.decompositions import Decompositions
from compress_onnx.graph_passes.planning.plan import CompressionPlan, SitePlan
from compress_onnx.graph_passes.planning.planner import require_gain
from compress_onnx.graph_passes.planning.request import CompressionSpec
from compress_onnx.graph_passes.sites.find import SiteTable
from compress_onnx.graph_passes.sites.linear_site import LinearSite
from compress_onnx.pipeline.compress.compressed import Compressed
from compress_onnx.pipeline.compress.learn import Learned, learn
from compress_onnx.pipeline.compress.sequential import Repaired
from compress_onnx.pipeline.evidence.settings import RunSettings
from compress_onnx.pipeline.files.cache import content_key
from compress_onnx.pipeline.files.original import Original, open_original
from compress_onnx.pipeline.runtime.samples import Samples
from compress_onnx.pipeline.runtime.session import SessionSpec, open_session, run
from compress_onnx.pipeline.translate.generation import DECODER, DECODER_MERGED, ENCODER


@dataclass(frozen=True)
class PartSamples:
    """Calibration data of the encoder and of the decoder without past key values."""

    encoder: Samples
    decoder: Samples


@dataclass(frozen=True)
class PartPlans:
    """What became of the sites of each graph that was written."""

    encoder: CompressionPlan
    decoder: CompressionPlan


class CompressedParts(NamedTuple):
    """What a request makes of the encoder, and of the decoder without past key values."""

    encoder: Compressed
    decoder: Compressed


def part_samples(
    folder: Path,
    sources: Mapping[str, Array],
    targets: Sequence[Sequence[int]],
    *,
    start_token: int,
    spec: SessionSpec | None = None,
    batch_size: int = 32,
) -> PartSamples:
    """Calibration data out of texts and what they become.

    Args:
        folder: has the original's graphs.
        sources: ``input_ids`` and ``attention_mask`` ``[n, S]``: what the encoder reads.
        targets: the tokens of the translation of each, by a person or by the model itself.
        start_token: what the decoder starts with (``decoder_start_token_id``).
        spec: how the encoder is run.
        batch_size: texts at a time.

    Raises:
        DataError: not as many targets as sources, or none that is long enough.
        ModelFileError: the encoder cannot be run.
    """
    mask = sources["attention_mask"]
    if len(mask) != len(targets) or not targets:
        raise DataError(f"{len(mask)} texts with {len(targets)} translations: give one for each")
    encoder = Samples(sources, "attention_mask", origin="texts with their translations")
    beginnings, rows = _beginnings(targets, start_token, other_length=mask.shape[1])
    chosen = encoder.select(rows)
    decoder = Samples(
        {
            "input_ids": beginnings,
            "encoder_hidden_states": _hidden_states(folder / ENCODER, chosen, spec, batch_size),
            "encoder_attention_mask": chosen.inputs["attention_mask"],
        },
        "encoder_attention_mask",
        origin="beginnings of translations",
    )
    return PartSamples(encoder, decoder)


@dataclass(frozen=True, eq=False)
class LearnedParts:
    """An encoder-decoder and all that is known about it; compresses it to any budget.

    Attributes:
        folder: the original, as exported.
        encoder, decoder: the encoder, and the decoder without past key values.
        merged: the decoder that generates, which has the same weights under other names.
    """

    folder: Path
    encoder: Learned
    decoder: Learned
    merged: Original

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the encoder's calibration.

        The decoder's would warn that the mask, which is the source's, does not fit what the decoder
        reads; nothing is padded there (rule 2).
        """
        calibration = self.encoder.calibration
        return calibration.notes if calibration else ()

    def compress(self, request: CompressionSpec, output: Path) -> PartPlans:
        """:meth:`compressed`, and :meth:`write` that."""
        return self.write(self.compressed(request), output)

    def compressed(self, request: CompressionSpec) -> CompressedParts:
        """Compress the encoder and the decoder.

        Args:
            request: how to compress; shares are of each part's own parameters.

        Raises:
            RequestError: the request makes no sense for a part.
            NothingToCompressError: no weight of a part can be factored with a gain.
        """
        tables = self.encoder.original.table, self.decoder.original.table
        return CompressedParts(
            self.encoder.compress(_for_part(request, *tables)),
            self.decoder.compress(_for_part(request, *reversed(tables))),
        )

    def write(self, parts: CompressedParts, output: Path) -> PartPlans:
        """Write the encoder, and the merged decoder with what the decoder has.

        Args:
            parts: of :meth:`compressed`.
            output: an existing folder that takes the two graphs and copies of the configuration and
                the tokenizer, ready for :class:`pipeline.translate.generation.TextGenerator`.

        Raises:
            NothingToCompressError: the merged decoder has none of the weights.
        """
        plans = PartPlans(
            encoder=parts.encoder.write(output / ENCODER),
            decoder=_transferred(parts.decoder, self.merged).write(output / DECODER_MERGED),
        )
        for asset in self.folder.iterdir():
            if asset.is_file() and ".onnx" not in asset.name:
                shutil.copy2(asset, output / asset.name)
        return plans


def learn_parts(
    folder: Path, samples: PartSamples | None = None, settings: RunSettings | None = None
) -> LearnedParts:
    """Learn what compressing the parts of ``folder`` needs.

    Args:
        folder: the original, as exported.
        samples: calibration data, for methods that look at activations.
        settings: how graphs are run.

    Raises:
        DataError: the samples do not fit a part.
    """
    return LearnedParts(
        folder,
        learn(folder / ENCODER, samples.encoder if samples else None, settings),
        learn(folder / DECODER, samples.decoder if samples else None, settings),
        open_original(folder / DECODER_MERGED),
    )


def _for_part(request: CompressionSpec, part: SiteTable, other: SiteTable) -> CompressionSpec:
    """The request without exclusions that are about the other part only."""

    def known(pattern: str, table: SiteTable) -> bool:
        return any(fnmatchcase(site.name, pattern) for site in table.sites)

    kept = [p for p in request.select.exclude if known(p, part) or not known(p, other)]
    select = request.select.model_copy(update={"exclude": tuple(kept)})
    return request.model_copy(update={"select": select})


def _transferred(compressed: Compressed, other: Original) -> Compressed:
    """The plan and the factors of one graph, for ``other``, which has the same weights.

    Raises:
        NothingToCompressError: none of the weights that are factored is in ``other``.
    """
    basis, plan = compressed.basis, compressed.plan
    counterparts = _counterparts(basis.original.table, other.table)
    planned = {site.site: site for site in plan.sites}
    # Both branches of the merged decoder have each network.
    ours = {
        (counterparts[site.name].name, site.node.graph): site.name
        for site in other.table.sites
        if site.name in counterparts
    }

    def alike(site: LinearSite) -> SitePlan:
        known = counterparts.get(site.name)
        if known is None:
            return _left_dense(site)
        found = planned[known.name]
        ffn = ours.get((found.ffn, site.node.graph), "")
        return found.model_copy(update={**_names(site), "ffn": ffn})

    transferred = plan.model_copy(
        update={
            "sites": tuple(alike(site) for site in other.table.sites),
            "skipped": other.table.skipped,
        }
    )
    require_gain(transferred)
    factors, networks = compressed.factorizations(), compressed.folded()
    shared = [site for site in other.table.sites if site.name in counterparts]
    known = _known(other.table, counterparts, basis.stats)
    return replace(
        compressed,
        basis=replace(basis, original=other, decompositions=Decompositions(known)),
        plan=transferred,
        repaired=Repaired(
            {
                site.weight.key: factors[counterparts[site.name].weight.key]
                for site in shared
                if counterparts[site.name].weight.key in factors
            },
            {
                site.name: networks[counterparts[site.name].name]
                for site in shared
                if counterparts[site.name].name in networks
            },
        ),
    )


def _known(
    table: SiteTable,
    counterparts: Mapping[str, LinearSite],
    stats: Mapping[str, ActivationStats],
) -> dict[str, ActivationStats]:
    """What is known about the counterparts of the matrices of ``table``, by the names of these."""
    found = {
        name: stats.get(theirs)
        for site in table.sites
        if site.name in counterparts
        for name, theirs in zip(site.matrices, counterparts[site.name].matrices, strict=True)
    }
    return {name: known for name, known in found.items() if known is not None}


def _counterparts(known: SiteTable, wanted: SiteTable) -> dict[str, LinearSite]:
    """For the name of each wanted site the known site whose weight has the same content."""
    by_content: dict[str, LinearSite] = {}
    for site in known.sites:
        by_content.setdefault(_content(site), site)
    found = {site.name: by_content.get(_content(site)) for site in wanted.sites}
    return {name: site for name, site in found.items() if site is not None}


def _content(site: LinearSite) -> str:
    return content_key({"": site.weight.array()})


def _names(site: LinearSite) -> dict[str, str]:
    return {"site": site.name, "node": site.node.name or "", "weight": site.weight.key}


def _left_dense(site: LinearSite) -> SitePlan:
    parameters = site.weight.matrices * site.in_features * site.out_features
    return SitePlan(
        **_names(site),
        group=site.group,
        in_features=site.in_features,
        out_features=site.out_features,
        matrices=site.weight.matrices,
        decision="dense",
        reason=f"{DECODER} has no such weight",
        parameters_before=parameters,
        parameters_after=parameters,
    )


def _beginnings(
    tokens: Sequence[Sequence[int]], start_token: int, *, other_length: int
) -> tuple[Array, NDArray[np.intp]]:
    """``[n, T]`` what the decoder is given, and of which ``n`` translations.

    T is the median length, so that half of the translations are long enough. It differs from
    ``other_length``, that of the texts: else the mask of these would be taken for its own.
    """
    lengths = np.array([len(row) for row in tokens])
    length = int(np.median(lengths))
    length -= length == other_length
    if length < 2:
        raise DataError("the translations are too short to calibrate a decoder on: give sentences")
    long_enough = lengths >= length
    found = [
        [start_token, *row[: length - 1]]
        for row, fits in zip(tokens, long_enough, strict=True)
        if fits
    ]
    return np.array(found, dtype=np.int64), np.flatnonzero(long_enough)


def _hidden_states(
    encoder: Path, samples: Samples, spec: SessionSpec | None, batch_size: int
) -> Array:
    """``[samples, S, D]``, zero where the source is padded."""
    session = open_session(encoder, spec)
    length = samples.inputs["attention_mask"].shape[1]
    found: np.ndarray | None = None
    for batch in samples.batches(batch_size):
        hidden = run(session, batch.feeds)["last_hidden_state"]
        if found is None:
            found = np.zeros((len(samples), length, hidden.shape[-1]), hidden.dtype)
        assert batch.mask is not None  # it is among the encoder's inputs
        found[batch.index, : hidden.shape[1]] = hidden * batch.mask[..., None]
    assert found is not None  # samples are never empty
    return found
