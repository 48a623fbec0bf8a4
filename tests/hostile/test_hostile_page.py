"""docs/hostile-peers.md names tests and files that are there, and every way to break the bare library."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "hostile-peers.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
FILE = re.compile(r"`(node/[\w.]+)`")
KNOWN = {
    f"{letter}{number}" for letter, most in (("C", 6), ("H", 7), ("M", 5), ("L", 5)) for number in range(1, most + 1)
}


def test_every_test_and_file_that_the_page_names_is_there():
    named = TEST.findall(PAGE)
    assert len(named) > 60
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).is_file() or f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert missing == []
    assert [path for path in FILE.findall(PAGE) if not (ROOT / path).is_file()] == []


def test_every_row_names_a_test_and_no_way_to_break_the_library_is_left_out():
    rows = [
        line
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith(("| # ", "| command", "| `make"))
    ]
    assert [row for row in rows if not TEST.search(row)] == []
    assert {row.split("|")[1].strip() for row in rows} >= KNOWN
