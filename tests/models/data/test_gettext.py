"""Gettext catalogues in wheels, and the sentences that are made of them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from compress_onnx.graph_passes.errors import DataError
from compress_onnx.pipeline.data.pairs import SentencePair
from models.data import catalogues, translations
from models.data.catalogues import fetch_messages, wheel_messages
from models.data.translations import clean_pairs, sentence_key, split_of, tagged

polib = pytest.importorskip("polib")

HEADER = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
LANGUAGES = {"de": ("de", "de_DE"), "pt": ("pt_BR", "pt")}


def po(**entries: str) -> str:
    lines = [f'msgid "{s}"\nmsgstr "{t}"\n' for s, t in entries.items()]
    return HEADER + "\n".join(lines)


def wheel(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def mo(source: str, target: str) -> bytes:
    file = polib.MOFile()
    file.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    file.append(polib.POEntry(msgid=source, msgstr=target))
    return file.to_binary()


def messages(path: Path) -> list[tuple[str, str, str]]:
    return [(m.language, m.source, m.target) for m in wheel_messages(path, LANGUAGES)]


def test_catalogues_are_found_by_their_place(tmp_path):
    path = wheel(
        tmp_path / "a.whl",
        {
            "a/locale/de/LC_MESSAGES/django.po": po(Save="Sichern"),
            "a/locale/de_DE/LC_MESSAGES/django.po": po(Save="zweite Wahl"),
            "a/locale/pt/LC_MESSAGES/django.po": po(Save="Guardar"),
            "a/locale/fr/LC_MESSAGES/django.po": po(Save="Enregistrer"),
            "a/locale/de/django.po": po(Save="anderswo"),
        },
    )
    assert messages(path) == [("de", "Save", "Sichern"), ("pt", "Save", "Guardar")]


def test_po_counts_before_mo_and_mo_is_read_alone(tmp_path):
    folder = "a/locale/de/LC_MESSAGES/"
    path = wheel(
        tmp_path / "a.whl",
        {
            folder + "x.mo": mo("Save", "alt"),
            folder + "x.po": po(Save="Sichern"),
            folder + "y.mo": mo("Öffnen?", "Größe"),
        },
    )
    assert messages(path) == [("de", "Save", "Sichern"), ("de", "Öffnen?", "Größe")]


def test_what_is_no_translation_is_left_out(tmp_path):
    text = po(Save="Sichern") + (
        '\n#, fuzzy\nmsgid "Open"\nmsgstr "Vielleicht"\n'
        '\nmsgid "Close"\nmsgstr ""\n'
        '\nmsgid "%d file"\nmsgid_plural "%d files"\nmsgstr[0] "a"\nmsgstr[1] "b"\n'
        '\n#~ msgid "Old"\n#~ msgstr "Alt"\n'
    )
    path = wheel(tmp_path / "a.whl", {"a/de/LC_MESSAGES/x.po": text})
    assert messages(path) == [("de", "Save", "Sichern")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.po", b"\xff\xfe\x00"),
        ("x.po", b'msgid "a" b" c"'),
        ("x.mo", b"no catalogue"),
        ("x.mo", mo("Save", "Sichern")[:40]),
    ],
)
def test_a_damaged_catalogue_is_one_line(tmp_path, name, content):
    path = wheel(tmp_path / "a.whl", {f"a/de/LC_MESSAGES/{name}": content})
    with pytest.raises(DataError, match=r"catalogues of a\.whl") as caught:
        messages(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_wheel_and_a_huge_catalogue_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.whl").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"catalogues of a\.whl"):
        messages(tmp_path / "a.whl")
    path = wheel(tmp_path / "b.whl", {"a/de/LC_MESSAGES/x.po": po(Save="Sichern")})
    monkeypatch.setattr(catalogues, "_MAX_CATALOGUE_BYTES", 10)
    with pytest.raises(DataError, match="larger than"):
        messages(path)


def test_packages_that_pip_refuses_are_one_line(tmp_path):
    requirements = tmp_path / "packages.txt"
    requirements.write_text("this is no requirement\n")  # so that no registry is asked
    with pytest.raises(DataError, match="pip cannot download") as caught:
        list(fetch_messages(requirements, LANGUAGES))
    assert "requirement" in str(caught.value)
    assert "\n" not in str(caught.value)


def cleaned(source: str, target: str) -> list[tuple[str, str]]:
    return [(p.source, p.target) for p in clean_pairs([SentencePair("de", source, target)])]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("Delete %(name)s now", "%(name)s jetzt löschen", ("Delete X now", "X jetzt löschen")),
        ("Delete {0!r}\n now ", "${x} jetzt  löschen", ("Delete X now", "X jetzt löschen")),
        ("&Open file", "Datei &öffnen", ("Open file", "Datei öffnen")),
        ("The “old” one…", "Das „alte“ …", ('The "old" one...', 'Das "alte" ...')),
        ("Say no", "Dire « non »", ("Say no", 'Dire "non"')),
        ("You’re 50 percent done", "50 Prozent – fertig", None),
    ],
)
def test_sentences_are_spelled_alike(source, target, expected):
    if expected is None:
        expected = ("You're 50 percent done", "50 Prozent - fertig")
    assert cleaned(source, target) == [expected]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("Delete <b>this</b> now", "Jetzt <b>das</b> löschen"),
        ("See https://a.example now", "Siehe jetzt dort"),
        ("Set max_size to ten", "Größe auf zehn setzen"),
        ("Delete %s now", "Jetzt löschen"),
        ("Delete X now", "Jetzt etwas löschen und nie wieder daran denken, bitte nicht mehr"),
        ("The current database name", "The current Datenbank name"),
        ("Delete this now", "Удалить это сейчас"),
        ("%s", "%s"),
        ("12", "zwölf"),
        (" ".join(["word"] * 31), " ".join(["Wort"] * 31)),
    ],
)
def test_what_is_no_clean_pair_is_dropped(source, target):
    assert cleaned(source, target) == []


def test_pairs_occur_once_but_other_translations_stay():
    found = clean_pairs(
        [
            SentencePair("de", "Open file", t)
            for t in ("Datei öffnen", "Datei  öffnen", "Akte öffnen")
        ]
    )
    assert [pair.target for pair in found] == ["Datei öffnen", "Akte öffnen"]


def test_like_sentences_are_in_one_split():
    variants = ["Delete X of 3 files?", "delete 12 of files", '"Delete" X - of X files!']
    assert {sentence_key(text) for text in variants} == {"delete of files"}
    assert len({split_of(text) for text in variants}) == 1
    keys = [f"{a} {b}" for a in "abcdefghij" for b in "klmnopqrst"]
    counts = dict.fromkeys(("train", "validation", "test"), 0)
    for key in keys:
        counts[split_of(key)] += 1
    assert counts["train"] > 80
    assert min(counts.values()) > 0


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Sentences of all lengths in two languages, fetched once; how often is in ``fetched``."""
    monkeypatch.setenv("COMPRESS_ONNX_CACHE", str(tmp_path / "cache"))
    requirements = tmp_path / "packages.txt"
    requirements.write_text("example==1.0\n")
    fetched = []

    def fetch(path, _languages):
        fetched.append(path)
        for number in range(400):
            word = "".join("abcdefghij"[int(digit)] for digit in f"{number:03}")
            for language in ("de", "pt"):
                yield SentencePair(language, f"Open {word}", f"{word}x auf")
                yield SentencePair(
                    language, f"Open the {word} file", f"Datei {word}x auf ({language})"
                )
                yield SentencePair(language, f"open the {word} file!", f"Zweite {word}x {language}")

    monkeypatch.setattr(translations, "fetch_messages", fetch)
    return requirements, fetched


def test_splits_share_no_sentence_in_any_language(corpus):
    requirements, fetched = corpus
    keys = {}
    for split in ("train", "validation", "test"):
        pairs = translations.translations(("de", "pt"), split, requirements)
        keys[split] = {sentence_key(pair.source) for pair in pairs}
        assert {pair.language for pair in pairs} == {"de", "pt"}
        assert keys[split]
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]
    assert len(fetched) == 1  # the rest came from the cache


def test_held_out_sentences_are_long_and_have_one_reference(corpus):
    requirements, _ = corpus
    held_out = translations.translations(("de",), "test", requirements)
    assert all(len(pair.source.split()) >= 4 for pair in held_out)
    keys = [sentence_key(pair.source) for pair in held_out]
    assert len(keys) == len(set(keys))
    train = translations.translations(("de",), "train", requirements)
    assert min(len(pair.source.split()) for pair in train) == 2
    assert {pair.target.split()[0] for pair in train} >= {"Datei", "Zweite"}


def test_languages_and_packages_that_are_not_there(corpus, tmp_path):
    requirements, _ = corpus
    with pytest.raises(DataError, match="unknown language 'xx': choose from de, "):
        translations.translations(("de", "xx"), "train", requirements)
    with pytest.raises(DataError, match="cannot read"):
        translations.translations(("de",), "train", tmp_path / "none.txt")


def test_the_language_stands_in_front():
    assert tagged(SentencePair("de", "Open file", "Datei öffnen")) == ">>de<< Open file"


def test_into_english_reads_no_held_out_sentence_in_training(monkeypatch, tmp_path):
    requirements = tmp_path / "packages.txt"
    requirements.write_text("example==2.0\n")

    def fetch(_path, _languages):
        for number in range(400):
            word = "".join("abcdefghij"[int(digit)] for digit in f"{number:03}")
            yield SentencePair("de", f"Open the {word} file", f"Die Datei {word}x bitte auf")
            yield SentencePair("de", f"Press the {word} key", "Eine Taste wird gedrückt")

    monkeypatch.setattr(translations, "fetch_messages", fetch)
    held_out = translations.into_english(("de",), "test", requirements)
    assert held_out
    assert all(pair.into == "en" and pair.target.startswith("Open") for pair in held_out)
    train = translations.into_english(("de",), "train", requirements)
    assert {pair.target.split()[0] for pair in train} == {"Open", "Press"}
    assert not {p.source for p in train} & {p.source for p in held_out}
    turned = translations.translations(("de",), "test", requirements)
    assert any(pair.source.startswith("Press") for pair in turned)
