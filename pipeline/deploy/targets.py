"""All targets by name, and how a package becomes one's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from compress_onnx.graph_passes.errors import RequestError
from compress_onnx.pipeline.deploy.card import Library, write_card
from compress_onnx.pipeline.deploy.hugging_face import (
    COMPRESSED_NAME,
    lay_out_fastembed,
    lay_out_optimum,
    lay_out_sentence_transformers,
    lay_out_tei,
    lay_out_transformers_js,
)
from compress_onnx.pipeline.deploy.mlserver import lay_out_mlserver
from compress_onnx.pipeline.deploy.onnx_runtime import lay_out_onnx_runtime
from compress_onnx.pipeline.deploy.package import (
    DEPLOY_FOLDER,
    Package,
    Serving,
    read_package,
)
from compress_onnx.pipeline.deploy.provenance import write_provenance
from compress_onnx.pipeline.deploy.search_engines import lay_out_opensearch, lay_out_vespa
from compress_onnx.pipeline.deploy.triton import lay_out_kserve, lay_out_triton
from compress_onnx.pipeline.files.atomic import anything, atomic_directory
from compress_onnx.pipeline.files.bundle import is_bundle, write_manifest
from compress_onnx.pipeline.recipe import DeployTarget


@dataclass(frozen=True)
class Target:
    """A place where models go.

    Attributes:
        lay_out: writes the package into an empty folder, and yields what the user has to know.
        loading: the lines that load it, with ``{folder}`` (``{parent}/{last}``), ``{name}``, and
            of a sentence encoder ``{pooling}``, ``{normalized}`` and ``{width}``.
        beside: what ``{beside}`` in these lines is where the original is there too.
        versions: whether the original can stand beside the compressed model.
        library: who loads it, where the folder has the hub's layout, and so a model card.
    """

    lay_out: Callable[[Package, Path], Iterator[str]]
    loading: str
    versions: bool = False
    beside: str = ""
    library: Library | None = None


TARGETS: Mapping[DeployTarget, Target] = {
    "sentence-transformers": Target(
        lay_out_sentence_transformers,
        "from sentence_transformers import SentenceTransformer\n"
        'model = SentenceTransformer("{folder}", backend="onnx"{beside})\n'
        'model.encode(["a sentence"])',
        versions=True,
        beside=f', model_kwargs={{"file_name": "onnx/{COMPRESSED_NAME}"}}',
        library=Library("sentence-transformers", "python"),
    ),
    "tei": Target(
        lay_out_tei,
        "docker run -p 8080:80 -v $(realpath {folder}):/model \\\n"
        "    ghcr.io/huggingface/text-embeddings-inference:cpu-latest --model-id /model\n"
        "curl localhost:8080/embed -H 'Content-Type: application/json' -d '{{\"inputs\": \"a\"}}'",
        library=Library("sentence-transformers", "sh", ("text-embeddings-inference",)),
    ),
    "fastembed": Target(
        lay_out_fastembed,
        "from fastembed import TextEmbedding\n"
        "from fastembed.common.model_description import ModelSource, PoolingType\n"
        'TextEmbedding.add_custom_model("{name}", PoolingType("{pooling}"), {normalized}, '
        'ModelSource(hf="{name}"), {width})\n'
        'TextEmbedding("{name}", specific_model_path="{folder}").embed(["a sentence"])',
        library=Library("fastembed", "python"),
    ),
    "transformers-js": Target(
        lay_out_transformers_js,
        'import {{ env, pipeline }} from "@huggingface/transformers";\n'
        'env.localModelPath = "{parent}";\n'
        'const embed = await pipeline("feature-extraction", "{last}", {{ dtype: "q8" }});',
        versions=True,
        library=Library("transformers.js", "js"),
    ),
    "optimum": Target(
        lay_out_optimum,
        "from optimum.onnxruntime import ORTModelForFeatureExtraction\n"
        'model = ORTModelForFeatureExtraction.from_pretrained("{folder}"{beside})',
        versions=True,
        beside=f', file_name="{COMPRESSED_NAME}"',
        library=Library("optimum", "python"),
    ),
    "triton": Target(
        lay_out_triton,
        "docker run -p 8000:8000 -p 8001:8001 -v $(realpath {folder})/repository:/models \\\n"
        "    nvcr.io/nvidia/tritonserver:25.10-py3 tritonserver --model-repository /models\n"
        "curl localhost:8000/v2/models/{name}/ready",
        versions=True,
    ),
    "kserve": Target(
        lay_out_kserve,
        "kubectl cp {folder}/repository loader:/mnt/models/repository\n"
        "kubectl apply -f {folder}/inference-service.yaml",
        versions=True,
    ),
    "mlserver": Target(
        lay_out_mlserver,
        "pip install 'mlserver==1.7.*' onnxruntime\n"
        "mlserver start {folder}\n"
        "curl localhost:8080/v2/models/{name}/ready",
        versions=True,
    ),
    "vespa": Target(
        lay_out_vespa,
        "cp -r {folder}/models my-application/   # component.xml goes into services.xml\n"
        "vespa deploy my-application",
    ),
    "opensearch": Target(
        lay_out_opensearch,
        "curl -X POST localhost:9200/_plugins/_ml/models/_register \\\n"
        "    -H 'Content-Type: application/json' -d @{folder}/register.json",
    ),
    "ort": Target(
        lay_out_onnx_runtime,
        "onnx_test_runner {folder}/{name}\nonnxruntime_perf_test {folder}/{name}/model.onnx",
        versions=True,
    ),
}


def named(target: str) -> Target:
    """The target of that name.

    Raises:
        RequestError: there is none.
    """
    found = {str(name): one for name, one in TARGETS.items()}.get(target)
    if found is None:
        raise RequestError(f"there is no target {target!r}, only {', '.join(TARGETS)}")
    return found


def bundle(package: Package, target: str, output: Path, *, force: bool = False) -> tuple[str, ...]:
    """Write ``package`` to the folder ``output`` as ``target`` wants it, with a manifest.

    Returns:
        What the user has to know.

    Raises:
        RequestError: there is no such target, or the package does not fit it.
        MissingDependencyError: a package of the ``deploy`` extra is not installed.
        ModelFileError: the model is damaged, or too large for one file.
        OutputError: the folder cannot be written, or holds somebody else's files.
    """
    known = named(target)
    if package.original is not None and not known.versions:
        raise RequestError(
            f"{target} knows one version of a model: bundle the original into a folder of its own"
        )
    with atomic_directory(output, replaceable=anything if force else is_bundle) as folder:
        notes = tuple(known.lay_out(package, folder))
        if known.library is not None:
            # By a name of the model's own: where it lies now says nothing to who fetches it.
            lines = loading_lines(package, target, Path(package.name))
            write_card(package, known.library, lines, folder)
        write_provenance(package, folder)
        write_manifest(folder)
    return notes


def bundle_all(
    targets: Iterable[str],
    folder: Path,
    name: str,
    *,
    original: Path | None = None,
    serving: Serving | None = None,
) -> tuple[str, ...]:
    """Write the package in ``folder`` for each of ``targets`` into ``folder``/deploy.

    The original goes along where the target knows versions.

    Returns:
        What the user has to know.

    Raises:
        CompressOnnxError: as :func:`bundle` does.
    """
    notes = []
    for target in dict.fromkeys(targets):
        beside = original if named(target).versions else None
        package = read_package(folder, name, original=beside, serving=serving)
        found = bundle(package, target, folder / DEPLOY_FOLDER / target)
        notes += [f"{target}: {note}" for note in found]
    return tuple(notes)


def loading_lines(package: Package, target: str, folder: Path) -> str:
    """The lines that load what :func:`bundle` wrote to ``folder``."""
    facts: dict[str, object] = {"folder": folder, "name": package.name}
    facts |= {"parent": folder.parent, "last": folder.name}
    facts["beside"] = named(target).beside if package.original is not None else ""
    if "{pooling}" in named(target).loading:
        pooling = package.pooling
        facts |= {
            "pooling": pooling.modes[0].upper(),
            "normalized": pooling.normalized,
            "width": package.width,
        }
    return named(target).loading.format(**facts)
