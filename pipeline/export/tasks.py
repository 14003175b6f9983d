"""What a Hugging Face model is for: the class that loads it, and the outputs that count.

Outputs have the names that ``optimum.onnxruntime``'s ORTModel classes look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress_onnx.graph_passes.errors import RequestError


@dataclass(frozen=True)
class Task:
    """A task by its name on the hub.

    Attributes:
        name: the hub's, and optimum's.
        auto_class: the class of ``transformers`` that loads a checkpoint for it.
        outputs: the outputs to export.
        architectures: how the names of such model classes end.
        unused_weights: beginnings of weight names that a checkpoint may lack, because no exported
            output depends on them.
    """

    name: str
    auto_class: str
    outputs: tuple[str, ...]
    architectures: tuple[str, ...]
    unused_weights: tuple[str, ...] = ()


_LOGITS = ("logits",)

TASKS = {
    task.name: task
    for task in (
        Task(
            "text-classification",
            "AutoModelForSequenceClassification",
            _LOGITS,
            ("ForSequenceClassification",),
        ),
        Task(
            "token-classification",
            "AutoModelForTokenClassification",
            _LOGITS,
            ("ForTokenClassification",),
        ),
        Task("fill-mask", "AutoModelForMaskedLM", _LOGITS, ("ForMaskedLM",)),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            ("start_logits", "end_logits"),
            ("ForQuestionAnswering",),
        ),
        Task("text-generation", "AutoModelForCausalLM", _LOGITS, ("ForCausalLM", "LMHeadModel")),
        Task(
            "image-classification",
            "AutoModelForImageClassification",
            _LOGITS,
            ("ForImageClassification",),
        ),
        # Last: "LMHeadModel" ends in "Model" too.
        Task(
            "feature-extraction",
            "AutoModel",
            ("last_hidden_state",),
            ("Model",),
            unused_weights=("pooler.",),
        ),
    )
}

_SYNONYMS = {
    "sequence-classification": "text-classification",
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
    "sentence-similarity": "feature-extraction",
    "image-feature-extraction": "feature-extraction",
}


def task_of(name: str | None, architectures: Sequence[str] | None) -> Task | None:
    """The task called ``name``, else the one that the first of ``architectures`` is for."""
    if name is not None:
        return TASKS.get(_SYNONYMS.get(name, name))
    trained_for = architectures[0] if architectures else ""
    return next((t for t in TASKS.values() if trained_for.endswith(t.architectures)), None)


def require_task(name: str | None, architectures: Sequence[str] | None) -> Task:
    """Like :func:`task_of`, but there must be one.

    Raises:
        RequestError: the task is unknown, or cannot be told from the architecture.
    """
    task = task_of(name, architectures)
    if task is None:
        problem = (
            f"the exporter dynamo does not know the task {name!r}"
            if name is not None
            else f"cannot tell the task from the architecture {list(architectures or ())}"
        )
        raise RequestError(f"{problem}: choose one of {', '.join(TASKS)}, or the exporter optimum")
    return task
