"""Text out of an encoder–decoder in ONNX, by ONNX Runtime with past key values.

A folder holds it as optimum writes it: ``encoder_model.onnx``, and the decoder either merged into
``decoder_model_merged.onnx`` or apart in ``decoder_model.onnx`` (the first token) and
``decoder_with_past_model.onnx`` (all others), beside configuration and tokenizer. Where there are
both, the merged one is run. The search is transformers' own, greedy or with beams; the sessions are
this project's, so that a provider that is not there is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_onnx.graph_passes.errors import DataError, ModelFileError
from compress_onnx.pipeline.data.preprocessing import load_tokenizer
from compress_onnx.pipeline.export.dependencies import require_export_extra
from compress_onnx.pipeline.export.quiet import quiet
from compress_onnx.pipeline.runtime.session import SessionSpec, one_line, open_session

if TYPE_CHECKING:
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

ENCODER = "encoder_model.onnx"
DECODER = "decoder_model.onnx"
DECODER_WITH_PAST = "decoder_with_past_model.onnx"
DECODER_MERGED = "decoder_model_merged.onnx"

# For tokenizers that know no limit; Marian and NLLB have positions for as many.
_MAX_SOURCE_TOKENS = 512


class TextGenerator:
    """An encoder–decoder that turns texts into texts."""

    def __init__(
        self,
        folder: Path,
        spec: SessionSpec | None = None,
        tokenizer: Any = None,  # noqa: ANN401  # transformers' classes carry no types
    ) -> None:
        """Open the sessions and the tokenizer.

        Args:
            folder: the ONNX files, ``config.json``, and the tokenizer's files.
            spec: how the graphs are run; defaults to ``SessionSpec()``.
            tokenizer: where it is set up already (:mod:`pipeline.translate.languages`).

        Raises:
            ModelFileError: a graph or the configuration is missing or damaged.
            DataError: so is the tokenizer.
            ProviderError: the provider could not be created.
            MissingDependencyError: the ``export`` extra is not installed.
        """
        require_export_extra("torch", "transformers", "optimum")
        self._model = _open(folder, spec or SessionSpec())
        self._tokenizer = tokenizer or load_tokenizer(folder)

    @property
    def start_token(self) -> int:
        """What the decoder starts with.

        Raises:
            ModelFileError: the configuration does not say.
        """
        found = self._model.generation_config.decoder_start_token_id
        if found is None:
            found = self._model.config.decoder_start_token_id
        if found is None:
            raise ModelFileError(
                "the model's configuration has no decoder_start_token_id: add what the decoder "
                "starts with"
            )
        return int(found)

    def generate(
        self,
        texts: Sequence[str],
        *,
        beams: int = 1,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        forced_token: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """What the model makes of each of ``texts``, in their order.

        Args:
            texts: what the encoder reads.
            beams: hypotheses that the search keeps; 1 is greedy.
            max_new_tokens: where a text is cut off.
            batch_size: texts at a time; texts of like length go together.
            forced_token: what every text must begin with, as tokenizers of many languages want.
            progress: called after each batch with the number of texts done so far.

        Raises:
            DataError: there are no texts.
            ModelFileError: the model fails while it runs.
        """
        if not texts:
            raise DataError("there is no text to generate from: give at least one")
        settings: dict[str, Any] = {"num_beams": beams, "max_new_tokens": max_new_tokens}
        if forced_token is not None:
            settings["forced_bos_token_id"] = forced_token
        found = [""] * len(texts)
        for done, rows in _batches(texts, batch_size):
            outputs = self._generate([texts[row] for row in rows], settings)
            for row, output in zip(rows, outputs, strict=True):
                found[row] = output
            if progress is not None:
                progress(done)
        return found

    def _generate(self, texts: list[str], settings: Mapping[str, Any]) -> list[str]:
        inputs = self._tokenizer(
            texts,
            padding="longest",
            truncation=True,
            max_length=min(self._tokenizer.model_max_length, _MAX_SOURCE_TOKENS),
            return_tensors="pt",
        )
        wanted = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        try:
            ids = self._model.generate(**wanted, **settings, do_sample=False)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise ModelFileError(f"the model cannot generate: {one_line(error)}") from error
        decoded: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return decoded


def decoder_files(folder: Path) -> tuple[str, ...]:
    """The decoder's files in ``folder`` that generation runs.

    Raises:
        ModelFileError: there is no complete decoder.
    """
    for names in ((DECODER_MERGED,), (DECODER, DECODER_WITH_PAST)):
        if all((folder / name).is_file() for name in names):
            return names
    raise ModelFileError(
        f"{folder} has neither {DECODER_MERGED} nor {DECODER} with {DECODER_WITH_PAST}: export the "
        "model with past key values"
    )


def _open(folder: Path, spec: SessionSpec) -> ORTModelForSeq2SeqLM:
    from optimum.onnxruntime import ORTModelForSeq2SeqLM
    from transformers import AutoConfig, GenerationConfig

    # The same sessions translate and are timed.
    encoder = open_session(folder / ENCODER, spec, spinning=True)
    decoders = [open_session(folder / name, spec, spinning=True) for name in decoder_files(folder)]
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if (folder / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        else:
            generation = GenerationConfig.from_model_config(config)
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"cannot read the configuration in {folder}: {one_line(error)}"
        ) from error
    config.use_cache = generation.use_cache = True
    with quiet():
        return ORTModelForSeq2SeqLM(
            config=config,
            encoder_session=encoder,
            decoder_session=decoders[0],
            decoder_with_past_session=decoders[1] if len(decoders) > 1 else None,
            generation_config=generation,
            model_save_dir=folder,
        )


def _batches(texts: Sequence[str], size: int) -> Iterator[tuple[int, list[int]]]:
    """Positions of texts of like length, and how many will be done after them."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield start + len(rows), rows
