"""English sentences out of the docstrings of Python's standard library, read and never imported.

Four times as many as its language reference has (``pydoc.py``), of the same kind, for
what wants much text: recovery. They depend on the version of Python.

Rules:

1. A sentence that the reference's validation split has is left out, so that training on docstrings
   and validating on the reference stay apart.
2. Tests are left out, and so is whatever is installed beside the library.
3. Files that do not parse (some are there to be wrong) are passed over.
"""

from __future__ import annotations

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data.documents import docstrings_of, library_files
from compress_onnx.pipeline.data.sentences import sentence_key, split_sentences

from .pydoc import pydoc_sentences


def docstring_sentences() -> list[str]:
    """The sentences, each once, in the order of the files' names.

    Raises:
        DataError: this Python comes without the sources of its library.
    """
    held_out = {sentence_key(text) for text in pydoc_sentences("validation")}
    unique: dict[str, str] = {}
    for path in library_files().values():
        for document in docstrings_of(path):
            for sentence in split_sentences(document):
                unique.setdefault(sentence_key(sentence), sentence)
    if not unique:
        raise DataError(
            "this Python comes without the sources of its library: install them, or give a text "
            "file as data"
        )
    return [text for key, text in unique.items() if key not in held_out]
