"""docs/attacks.md names tests and files that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "attacks.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
FILE = re.compile(r"`((?:proto|market|scheduler|node|contracts)/[\w.]+)`")


def test_every_test_that_the_page_names_is_there():
    named = TEST.findall(PAGE.read_text(encoding="utf-8"))
    assert len(named) > 40
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).is_file() or f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_every_file_that_the_page_names_is_there():
    assert [path for path in FILE.findall(PAGE.read_text(encoding="utf-8")) if not (ROOT / path).is_file()] == []


def test_every_row_has_an_attack_a_defence_and_a_test():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 3, row
        assert all(cells), row
        assert TEST.search(cells[2]) or cells[2].startswith("none"), row
