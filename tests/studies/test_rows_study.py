"""The study of rows tells each part of the sentences in one line."""

from __future__ import annotations

from studies import rows


def test_a_line_has_all_structures():
    found = {"low rank": (0.9, 12.4), "neurons and low rank": (0.95, 10.2)}
    page = list(rows.page([rows.Row(1300, 33000, found)]))
    assert page[-1] == "| 1,300 | 33,000 | 0.9000 | 12 | 0.9500 | 10 |"
    header, line = page[-3], page[-2]
    assert header.count("|") == line.count("|") == page[-1].count("|")


def test_parts_rise_to_the_whole():
    assert list(rows.PARTS) == sorted(rows.PARTS)
    assert rows.PARTS[-1] == 1
