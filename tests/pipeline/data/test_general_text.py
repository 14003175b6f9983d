"""A general text out of what is installed: how it is mixed, and what stays out."""

from __future__ import annotations

import struct
from collections import Counter
from importlib.metadata import distributions

import pytest
from loading import TEXT_INPUTS, load

from compress_onnx.graph_passes.errors import DataError, RequestError
from compress_onnx.pipeline.data import documents
from compress_onnx.pipeline.data.general_text import general_text, in_turn
from compress_onnx.pipeline.data.sentences import is_held_out, sentence_key, split_sentences
from compress_onnx.pipeline.recipe import GeneralTextData, Recipe, read_recipe

WORDS = ["red", "green", "blue", "black", "white", "brown", "grey", "pink", "gold", "silver"]
SHARED = "This sentence stands in the description and in the code."


def described(package: str, count: int = 10) -> list[str]:
    return [f"The package {package} paints {word} things on a wall." for word in WORDS[:count]]


def documented(package: str, count: int = 10) -> list[str]:
    return [f"A function of {package} mixes {word} with water." for word in WORDS[:count]]


def install(site, package: str, code: str = "", description: str = "", files=()) -> None:
    """A package with one module in ``site``, as an installer leaves it."""
    (site / package).mkdir(parents=True)
    (site / package / "__init__.py").write_text(code)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    header = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    (info / "METADATA").write_text(f"{header}\n{description}")
    names = [f"{package}/__init__.py", *files]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))


def module(sentences) -> str:
    return "".join(f'def f{n}():\n    """{text}"""\n' for n, text in enumerate(sentences))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Where packages are found: two that are small, and one with very much to say."""
    folder = tmp_path / "site"
    for package in ("alpha", "beta"):
        text = "\n\n".join([SHARED, *described(package)])
        install(folder, package, module([SHARED, *documented(package)]), text)
    long = [f"{first} {text}" for first in ("Here", "There") for text in described("gamma")]
    install(folder, "gamma", "", "\n\n".join(long))
    monkeypatch.setattr(documents, "distributions", lambda: distributions(path=[str(folder)]))
    return folder


def spec(**settings) -> GeneralTextData:
    return GeneralTextData(kind="general-text", **settings)


FAKE = {"sources": ["descriptions", "docstrings"]}


def test_the_seed_alone_decides(site, monkeypatch):
    first = general_text(spec(samples=16, **FAKE))
    assert list(general_text(spec(samples=16, **FAKE)).items()) == list(first.items())
    assert list(general_text(spec(samples=16, **FAKE), seed=1)) != list(first)
    backwards = list(distributions(path=[str(site)]))[::-1]
    monkeypatch.setattr(documents, "distributions", lambda: backwards)
    assert list(general_text(spec(samples=16, **FAKE)).items()) == list(first.items())


def test_it_has_as_many_sentences_as_asked_for_and_each_once(site):
    text = general_text(spec(samples=17, **FAKE))
    assert len({sentence_key(sentence) for sentence in text}) == len(text) == 17


def test_sources_and_packages_are_mixed_evenly(site):
    text = general_text(spec(samples=12, **FAKE))
    assert Counter(text.values()) == {"descriptions": 6, "docstrings": 6}
    packages = Counter(
        name for text in text for name in ("alpha", "beta", "gamma") if f" {name} " in text
    )
    assert packages["gamma"] <= 3  # of the most to say
    assert min(packages["alpha"], packages["beta"]) >= 3


def test_no_part_of_it_is_of_one_source_alone(site):
    origins = list(general_text(spec(samples=24, **FAKE)).values())
    assert len(set(origins[::2])) == len(set(origins[1::2])) == 2


def test_an_excluded_source_stays_out_entirely(site):
    written = {SHARED, *documented("alpha"), *documented("beta")}
    code = {text for text in written if not is_held_out(sentence_key(text))}
    assert SHARED in code
    assert set(general_text(spec(samples=len(code), sources=["docstrings"]))) == code
    without = {**FAKE, "exclude": ["descriptions"]}
    assert set(general_text(spec(samples=len(code) - 1, **without))) == code - {SHARED}
    with pytest.raises(DataError, match="fewer than samples"):
        general_text(spec(samples=len(code), **without))


@pytest.mark.parametrize("split", ["calibration", "validation"])
def test_splits_share_no_sentence(site, split):
    text = general_text(spec(samples=6, split=split))
    assert {is_held_out(sentence_key(sentence)) for sentence in text} == {split == "validation"}


def test_too_few_sentences_are_an_error_that_says_how_many_there_are(site):
    with pytest.raises(
        DataError, match=r"general text: \d+ sentences of descriptions .* 9999"
    ) as e:
        general_text(spec(samples=9999, sources=["descriptions"]))
    assert "\n" not in str(e.value)


def test_no_source_left_is_refused_with_the_recipe(tmp_path):
    data = "{kind: general-text, sources: [library], exclude: [library]}"
    (tmp_path / "r.yaml").write_text(f"name: r\nsource: {{model: m}}\ncalibration: {data}\n")
    with pytest.raises(RequestError, match=r"calibration\.general-text: .*no source is left"):
        read_recipe(tmp_path / "r.yaml")
    settings = {"name": "r", "source": {"model": "m"}}
    recipe = Recipe.model_validate({**settings, "calibration": {"kind": "general-text"}})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_python_itself_has_text_to_mix():
    text = general_text(spec(samples=60, sources=["reference", "library"]))
    assert Counter(text.values()) == {"reference": 30, "library": 30}


def test_it_is_tokenized_like_other_texts(site, tmp_path, tokenizer_dir):
    options = {"tokenizer_dir": tokenizer_dir, "mask": "attention_mask"}
    samples = load(spec(samples=10, **FAKE, max_tokens=5), tmp_path, TEXT_INPUTS, **options)
    assert samples.inputs["input_ids"].shape == (10, 5)
    assert samples.origin == "general text (5 descriptions, 5 docstrings; calibration)"


class TestDocuments:
    def test_descriptions_lose_what_is_no_text(self, tmp_path):
        written = (
            "![badge](http://x/y.svg) <b>See</b> the [guide](http://x) or `page <http://y>`_.\n"
            "```python\nThis is code.\n```\nAnd then."
        )
        install(tmp_path, "alpha", description=written)
        (package,) = distributions(path=[str(tmp_path)])
        assert documents.description_of(package).split() == (
            ["See", "the", "guide", "or", "page.", "And", "then."]
        )

    def test_tests_and_what_lies_outside_are_left_out(self, tmp_path):
        files = ["alpha/tests/test_x.py", "../../etc/secret.py", "alpha/data.txt", "alpha/b.py"]
        install(tmp_path, "alpha", files=files)
        (tmp_path / "alpha/b.py").touch()  # Some readers of metadata leave out what is missing.
        (package,) = distributions(path=[str(tmp_path)])
        assert list(documents.files_of(package, ".py")) == ["alpha/__init__.py", "alpha/b.py"]

    @pytest.mark.parametrize(
        "content", [b"def broken(:", b"\x00", b"\xff\xfe", b"(" * 10_000, b"#" * (2 << 20), None]
    )
    def test_code_that_cannot_be_read_has_no_docstrings(self, tmp_path, content):
        path = tmp_path / "code.py"
        if content is not None:
            path.write_bytes(content)
        assert list(documents.docstrings_of(path)) == []

    def test_code_is_read_and_never_run(self, tmp_path):
        path = tmp_path / "code.py"
        path.write_text('"""What it says."""\nraise SystemExit("was run")\n')
        assert list(documents.docstrings_of(path)) == ["What it says."]

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_messages_of_a_catalogue(self, tmp_path, order):
        path = tmp_path / "x.mo"
        path.write_bytes(catalogue([b"", b"One text.", b"menu\x04Two texts.\x00Plural."], order))
        assert list(documents.messages_of(path)) == ["", "One text.", "Two texts."]

    @pytest.mark.parametrize("content", [b"", b"nothing", b"\xde\x12\x04\x95" + b"\xff" * 24, None])
    def test_a_damaged_catalogue_has_no_messages(self, tmp_path, content):
        path = tmp_path / "x.mo"
        if content is not None:
            path.write_bytes(content)
        assert list(documents.messages_of(path)) == []

    def test_one_catalogue_of_each_name_is_read(self, site):
        names = [f"delta/{language}/LC_MESSAGES/delta.mo" for language in ("de", "fr")]
        message = "Every message of a program is written in English first."
        install(site, "delta", files=names)
        for name in names:
            (site / name).parent.mkdir(parents=True)
            (site / name).write_bytes(catalogue([b"", message.encode()], "<"))
        assert len(documents.catalogues_of(documents.installed()["delta"])) == 1
        split = "validation" if is_held_out(sentence_key(message)) else "calibration"
        found = general_text(spec(samples=1, sources=["messages"], split=split))
        assert found == {message: "messages"}


def catalogue(messages: list[bytes], order: str) -> bytes:
    """A compiled gettext catalogue: header, table of lengths and places, texts."""
    place = 28 + 8 * len(messages)
    table, texts = b"", b""
    for message in messages:
        table += struct.pack(f"{order}2I", len(message), place + len(texts))
        texts += message + b"\0"
    return struct.pack(f"{order}7I", 0x950412DE, 0, len(messages), 28, 28, 0, 0) + table + texts


def test_sentence_splitter_keeps_prose_only():
    document = """Heading of the page
*******************

The *first* sentence goes over built-
in lines of text.  (The second one, e.g. this, is in
brackets.)  Too short.

   >>> this("is a session")
   It prints a line of text here.

   stmt ::= "a" This is a grammar and no text.

* A list mark is removed from the "x = [1, 2]" item.

   x = compute(1)  # This comment is no sentence at all.
"""
    assert list(split_sentences(document)) == [
        "The first sentence goes over built-in lines of text.",
        "(The second one, e.g. this, is in brackets.)",
        'A list mark is removed from the "x = [1, 2]" item.',
    ]


def test_streams_take_turns_until_all_have_ended():
    assert "".join(in_turn(map(iter, ("abc", "", "x", "12")))) == "ax1b2c"
