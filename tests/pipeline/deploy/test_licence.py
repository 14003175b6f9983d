"""What tells a licence, and what does not tell it clearly enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress_onnx.pipeline.deploy.licence import Licence, told_licence

APACHE = (Path(__file__).parents[3] / "LICENSE").read_text(encoding="utf-8")
MIT = "MIT License\n\nCopyright (c) 2024 Somebody\n\nPermission is hereby granted, free of charge\n"


def of_texts(tmp_path, *texts):
    files = [tmp_path / f"LICENSE{number or ''}" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    return told_licence({}, files)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (APACHE, "apache-2.0"),
        ("Copyright 2018- The team. All rights reserved.\n\n" + APACHE, "apache-2.0"),
        (MIT, "mit"),
        ("# The MIT License (MIT)\n", "mit"),
        ("\nBSD 3-Clause License\n\nCopyright", "bsd-3-clause"),
        ("Attribution-NonCommercial 4.0 International\n\n====", "cc-by-nc-4.0"),
        ("SPDX-License-Identifier: MPL-2.0\n", "mpl-2.0"),
        ("// SPDX-License-Identifier: MIT\n\n" + MIT, "mit"),
    ],
)
def test_a_text_that_names_its_licence(tmp_path, text, name):
    assert of_texts(tmp_path, text) == Licence(name, "LICENSE")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "You may use this as you like.\n",
        "Licensed under the Apache License, Version 2.0, but not for profit.\n",
        "A modified MIT License\n",
        "MIT License with a condition\n",
        "This is not under the\nMIT License\n",
        MIT + "\n" + APACHE,
        MIT + '\n"Commons Clause" License Condition v1.0\n',
        '"Commons Clause" License Condition v1.0\n',
        "SPDX-License-Identifier: MIT\nSPDX-License-Identifier: ISC\n",
        "SPDX-License-Identifier: Of-My-Own\n\n" + MIT,
        "SPDX-License-Identifier: MIT OR Apache-2.0\n",
        "SPDX-License-Identifier: ISC\n\n" + MIT,
    ],
)
def test_a_text_that_is_not_clear(tmp_path, text):
    assert of_texts(tmp_path, text) is None


def test_two_texts(tmp_path):
    """One that says nothing, such as NOTICE, does not matter; another licence does."""
    assert of_texts(tmp_path, "Thanks to all.\n", MIT) == Licence("mit", "LICENSE1")
    assert of_texts(tmp_path, APACHE, MIT) is None


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("llama3", {"license": "other", "license_name": "llama3"}),
        ("LicenseRef-Ours", {"license": "other", "license_name": "LicenseRef-Ours"}),
        ("MIT OR ISC", {"license": "other", "license_name": "MIT OR ISC"}),
        ("of\n---\nmine", {"license": "other", "license_name": "of --- mine"}),
    ],
)
def test_a_licence_of_the_configuration(value, fields):
    found = told_licence({"license": value})
    assert found is not None
    assert found.fields == fields


@pytest.mark.parametrize("value", [None, "", "  ", 1, ["mit"], {"name": "mit"}])
def test_what_is_no_licence(value):
    assert told_licence({"license": value}) is None


def test_what_contradicts_itself_is_not_known(tmp_path):
    file = tmp_path / "LICENSE"
    file.write_text(MIT)
    assert told_licence({"license": "MIT"}, [file]) == Licence("mit", "config.json")
    assert told_licence({"license": "apache-2.0"}, [file]) is None
