"""How a translation model is told languages, and the tokens of sentences for it.

1. By a prompt: the code of the target language stands in what the encoder reads (Marian's
   ``>>fra<< …``, T5's ``translate English to French: …``).
2. By tokens of the tokenizer's own (M2M100, NLLB, mBART): it marks the source language in what the
   encoder reads, and the first token that the decoder says must be the target language's. One of
   the two is the same for all sentences.
3. By nothing, where a model has one target language only.

A code that becomes an unknown token is an error: the model would translate into some language.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from compress_onnx.graph_passes.arrays import Array
from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.pipeline.data.pairs import SentencePair
from compress_onnx.pipeline.data.preprocessing import load_tokenizer
from compress_onnx.pipeline.recipe import TranslationMetric


class LanguageTokenizer:
    """A model's tokenizer, told languages as a recipe says."""

    def __init__(self, folder: Path, naming: TranslationMetric) -> None:
        """Load the tokenizer.

        Args:
            folder: has its files.
            naming: how languages are told.

        Raises:
            DataError: there is no tokenizer, or it does not know the common language.
        """
        self.tokenizer: Any = load_tokenizer(folder)
        self._naming = naming
        self._common = naming.source_language or naming.target_language
        if self._common is not None:
            if not hasattr(self.tokenizer, "src_lang"):
                raise DataError(
                    f"the tokenizer in {folder} knows no source language: name the target "
                    "language in a prompt"
                )
            self._token(self._common)

    def require(self, pairs: Sequence[SentencePair]) -> None:
        """Make sure that the model can be told all languages of ``pairs``.

        Raises:
            RequestError: there are several to translate into, and nothing tells the model which; or
                the common language is not on the side where the recipe says.
            DataError: the tokenizer does not know one.
        """
        naming = self._naming
        targets = dict.fromkeys(pair.into or pair.language for pair in pairs)
        told = self._common is not None or "{language}" in (naming.prompt or "")
        if len(targets) > 1 and not told:
            raise RequestError(
                f"nothing tells the model which of {', '.join(targets)} to translate into: give "
                "the metric a prompt with {language}, or a source_language"
            )
        into_one = {pair.into is not None for pair in pairs}
        if self._common is not None and into_one != {naming.target_language is not None}:
            raise RequestError(
                "the metric's target_language goes with data that have a target, its "
                "source_language with data that have a source: give one side in both"
            )
        for pair in {pair.language: pair for pair in pairs}.values():
            self._require(pair)

    def _require(self, pair: SentencePair) -> None:
        if self.turn_to(pair) is not None:
            return
        tokens = self.tokenizer(self.prompt(SentencePair(pair.language, "", "")))["input_ids"]
        if self.tokenizer.unk_token_id in tokens:
            raise self._unknown(self._code(pair.language))

    def prompt(self, pair: SentencePair) -> str:
        """What the encoder reads, as text."""
        template = self._naming.prompt or "{source}"
        named = template.replace("{language}", self._code(pair.language))
        return named.replace("{source}", pair.source)

    def turn_to(self, pair: SentencePair) -> int | None:
        """Make the tokenizer mark the languages of ``pair`` from now on.

        Returns:
            The token that the decoder must begin with; None where tokens tell no language.

        Raises:
            DataError: the tokenizer does not know the language.
        """
        if self._common is None:
            return None
        code = self._code(pair.language)
        token = self._token(code)
        if self._naming.target_language is None:
            self.tokenizer.src_lang, self.tokenizer.tgt_lang = self._common, code
            return token
        self.tokenizer.src_lang, self.tokenizer.tgt_lang = code, self._common
        return self._token(self._common)

    def sources(self, pairs: Sequence[SentencePair], max_tokens: int) -> dict[str, Array]:
        """``input_ids`` and ``attention_mask`` int64 ``[pairs, S]`` of what the encoder reads."""
        names = ("input_ids", "attention_mask")
        found: dict[str, list[Array]] = {name: [] for name in names}
        for _, group in groupby(pairs, lambda pair: pair.language):
            alike = list(group)
            self.turn_to(alike[0])
            encoded = self.tokenizer(
                [self.prompt(pair) for pair in alike],
                padding="max_length",
                truncation=True,
                max_length=max_tokens,
                return_tensors="np",
            )
            for name in names:
                found[name].append(np.asarray(encoded[name], dtype=np.int64))
        joined = {name: np.concatenate(arrays) for name, arrays in found.items()}
        used = joined["attention_mask"].any(axis=0)  # [max_tokens]
        return {name: array[:, used] for name, array in joined.items()}

    def targets(self, pairs: Sequence[SentencePair], max_tokens: int) -> list[list[int]]:
        """The tokens of the translations as the decoder says them, each with its end token."""
        return [self._target(pair, max_tokens) for pair in pairs]

    def _target(self, pair: SentencePair, max_tokens: int) -> list[int]:
        self.turn_to(pair)
        encoded = self.tokenizer(text_target=pair.target, truncation=True, max_length=max_tokens)
        found: list[int] = encoded["input_ids"]
        return found

    def _code(self, language: str) -> str:
        return self._naming.codes.get(language, language)

    def _token(self, code: str) -> int:
        # M2M100 has the token __fr__ for the code fr; for others a code is its own token.
        token = getattr(self.tokenizer, "lang_code_to_token", {}).get(code, code)
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise self._unknown(code)
        return int(found)

    def _unknown(self, code: str) -> DataError:
        return DataError(
            f"the tokenizer knows no language {code!r}: say what it calls it in the metric's codes"
        )
