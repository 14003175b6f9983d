"""How a translation model is told languages, and the tokens of sentences for it.

1. By a prompt: the code of the target language stands in what the encoder reads (Marian's
   ``>>fra<< …``, T5's ``translate English to French: …``).
2. By a forced token: the tokenizer knows the source language and marks it in what the encoder
   reads, and the first token that the decoder says must be the target language's (M2M100, NLLB,
   mBART).
3. By nothing, where a model has one target language only.

A code that becomes an unknown token is an error: the model would translate into some language.
"""

from __future__ import annotations

from collections.abc import Sequence
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
            DataError: there is no tokenizer, or it does not know the source language.
        """
        self.tokenizer: Any = load_tokenizer(folder)
        self._naming = naming
        if naming.source_language is not None:
            if not hasattr(self.tokenizer, "src_lang"):
                raise DataError(
                    f"the tokenizer in {folder} knows no source language: name the target "
                    "language in a prompt"
                )
            self._token(naming.source_language)
            self.tokenizer.src_lang = naming.source_language

    def require(self, languages: Sequence[str]) -> None:
        """Make sure that the model can be told all ``languages``.

        Raises:
            RequestError: there are several, and nothing tells the model which.
            DataError: the tokenizer does not know one.
        """
        naming = self._naming
        told = naming.source_language is not None or "{language}" in (naming.prompt or "")
        if len(languages) > 1 and not told:
            raise RequestError(
                f"nothing tells the model which of {', '.join(languages)} to translate into: give "
                "the metric a prompt with {language}, or a source_language"
            )
        for language in languages:
            self._require(language)

    def _require(self, language: str) -> None:
        if self.forced_token(language) is None:
            tokens = self.tokenizer(self.prompt(SentencePair(language, "", "")))["input_ids"]
            if self.tokenizer.unk_token_id in tokens:
                raise self._unknown(self._code(language))

    def prompt(self, pair: SentencePair) -> str:
        """What the encoder reads, as text."""
        template = self._naming.prompt or "{source}"
        named = template.replace("{language}", self._code(pair.language))
        return named.replace("{source}", pair.source)

    def forced_token(self, language: str) -> int | None:
        """The token that the decoder must begin with; None where the prompt names the language.

        Raises:
            DataError: the tokenizer does not know the language.
        """
        return None if self._naming.source_language is None else self._token(self._code(language))

    def sources(self, pairs: Sequence[SentencePair], max_tokens: int) -> dict[str, Array]:
        """``input_ids`` and ``attention_mask`` int64 ``[pairs, S]`` of what the encoder reads."""
        encoded = self.tokenizer(
            [self.prompt(pair) for pair in pairs],
            padding="longest",
            truncation=True,
            max_length=max_tokens,
            return_tensors="np",
        )
        names = ("input_ids", "attention_mask")
        return {name: np.asarray(encoded[name], dtype=np.int64) for name in names}

    def targets(self, pairs: Sequence[SentencePair], max_tokens: int) -> list[list[int]]:
        """The tokens of the translations as the decoder says them, each with its end token."""
        return [self._target(pair, max_tokens) for pair in pairs]

    def _target(self, pair: SentencePair, max_tokens: int) -> list[int]:
        if self._naming.source_language is not None:
            self.tokenizer.tgt_lang = self._code(pair.language)
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
