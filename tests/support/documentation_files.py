"""What a reader of the documentation has: a small sentence encoder, its tokenizer, sentences.

The encoder has two layers and random weights, whose singular values fall as slowly as those of
trained ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import small_models as small
from onnx import parser
from packages import encoder_package

WIDTH, HIDDEN, LAYERS = 128, 512, 2
PLACES, THINGS, DEEDS, KINDS = (
    line.split()
    for line in (
        "harbour station library market bridge garden kitchen tower valley museum",
        "letter ladder engine window lantern basket map bicycle piano clock",
        "finds repairs paints carries sells opens hides draws breaks returns",
        "old small green heavy quiet broken new round narrow bright",
    )
)
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    *("the", "a", "in", "near", "behind", "and"),
    *("baker", "sailor", "teacher", "child", "doctor", "farmer", "singer", "guard"),
    *PLACES,
    *THINGS,
    *DEEDS,
    *KINDS,
]


def write_files(folder: Path) -> None:
    """Model, tokenizer, sentences, data, and ``encoder``, a folder as ``run`` leaves one."""
    small.save(encoder(), folder / "model.onnx")
    package = encoder_package(folder / "encoder", encoder())
    for place in (folder, package):
        (place / "tokenizer.json").write_text(json.dumps(tokenizer()), encoding="utf-8")
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    (package / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    config = {"model_type": "bert", "hidden_size": WIDTH}
    (package / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lines = sentences(240)
    (folder / "sentences.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    np.savez(folder / "data.npz", **encoded(lines[:160]))
    np.savez(folder / "heldout.npz", **encoded(lines[160:]))


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of a few words each, all different."""
    rng = np.random.default_rng(seed)
    people = WORDS[10:18]
    found: dict[str, None] = {}
    while len(found) < count:
        pick = [str(rng.choice(words)) for words in (people, DEEDS, KINDS, THINGS, PLACES)]
        person, deed, kind, thing, place = pick
        article, where = str(rng.choice(["the", "a"])), str(rng.choice(["in", "near", "behind"]))
        line = f"the {person} {deed} {article} {kind} {thing}"
        if rng.random() < 0.6:
            line += f" {where} the {place}"
        if rng.random() < 0.3:
            line += f" and {rng.choice(DEEDS)} the {rng.choice(THINGS)}"
        found[line] = None
    return list(found)


def encoded(lines: list[str]) -> dict[str, np.ndarray]:
    """``input_ids`` and ``attention_mask``, padded to the longest line."""
    ids = [[2, *(WORDS.index(word) for word in line.split()), 3] for line in lines]
    longest = max(map(len, ids))
    rows = np.array([row + [0] * (longest - len(row)) for row in ids], np.int64)
    return {"input_ids": rows, "attention_mask": (rows != 0).astype(np.int64)}


def tokenizer() -> dict[str, object]:
    """A tokenizer of whole words, as ``tokenizer.json`` holds one."""
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", 3],
            "cls": ["[CLS]", 2],
        },
        "model": {
            "type": "WordLevel",
            "vocab": {word: place for place, word in enumerate(WORDS)},
            "unk_token": "[UNK]",
        },
    }


def encoder(seed: int = 0) -> onnx.ModelProto:
    """Two layers of attention and feed-forward networks, one vector for each token."""
    layers = "".join(_layer(index, f"x{index}", f"x{index + 1}") for index in range(LAYERS))
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        encoder (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask)
            => (float[batch, tokens, {WIDTH}] last_hidden_state) {{
            x0 = Gather(table, input_ids)
            real = Cast<to = 1>(attention_mask)
            absent = Sub(real, one)
            far = Mul(absent, large)
            bias = Unsqueeze(far, first)
            {layers}
            last_hidden_state = Identity(x{LAYERS})
        }}"""
    )
    weights = _weights(np.random.default_rng(seed))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    for node in model.graph.node:
        if node.op_type == "MatMul":
            kind, layer = node.output[0][:-1], node.output[0][-1]
            path = _PATHS.get(kind, f"LAYER/attention/{kind}").replace("LAYER", f"layer.{layer}")
            node.name = f"/encoder/{path}/MatMul"
    onnx.checker.check_model(model)
    return model


_PATHS = {
    "q": "LAYER/attention/query",
    "k": "LAYER/attention/key",
    "v": "LAYER/attention/value",
    "o": "LAYER/attention/output",
    "u": "LAYER/mlp/up",
    "d": "LAYER/mlp/down",
}


def _layer(i: int, read: str, written: str) -> str:
    return f"""
        q{i} = MatMul({read}, wq{i})
        k{i} = MatMul({read}, wk{i})
        v{i} = MatMul({read}, wv{i})
        kt{i} = Transpose<perm = [0, 2, 1]>(k{i})
        s{i} = MatMul(q{i}, kt{i})
        n{i} = Mul(s{i}, scale)
        b{i} = Add(n{i}, bias)
        p{i} = Softmax<axis = -1>(b{i})
        c{i} = MatMul(p{i}, v{i})
        o{i} = MatMul(c{i}, wo{i})
        r{i} = Add({read}, o{i})
        h{i} = LayerNormalization<axis = -1>(r{i}, gain, shift)
        u{i} = MatMul(h{i}, wu{i})
        ub{i} = Add(u{i}, bu{i})
        z{i} = Relu(ub{i})
        d{i} = MatMul(z{i}, wd{i})
        e{i} = Add(h{i}, d{i})
        {written} = LayerNormalization<axis = -1>(e{i}, gain, shift)"""


def _weight(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A random matrix whose singular values fall slowly, as those of trained layers do."""
    left, _ = np.linalg.qr(rng.normal(size=(rows, min(rows, columns))))
    right, _ = np.linalg.qr(rng.normal(size=(columns, min(rows, columns))))
    return (4 * left * np.arange(1, left.shape[1] + 1) ** -0.7) @ right.T


def _weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    weights: dict[str, np.ndarray] = {
        "table": rng.normal(size=(len(WORDS), WIDTH)) / 5,
        "one": np.ones(1),
        "large": np.full(1, 1e4),
        "scale": np.full(1, WIDTH**-0.5),
        "gain": np.ones(WIDTH),
        "shift": np.zeros(WIDTH),
    }
    for layer in range(LAYERS):
        for name in ("wq", "wk", "wv", "wo"):
            weights[f"{name}{layer}"] = _weight(rng, WIDTH, WIDTH)
        weights[f"wu{layer}"] = _weight(rng, WIDTH, HIDDEN)
        weights[f"bu{layer}"] = rng.normal(size=HIDDEN) / 4
        weights[f"wd{layer}"] = _weight(rng, HIDDEN, WIDTH)
    found = {name: array.astype(np.float32) for name, array in weights.items()}
    return {**found, "first": np.array([1])}
