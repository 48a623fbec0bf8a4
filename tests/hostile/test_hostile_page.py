"""docs/hostile-peers.md names a test in every row, and every way to break the bare library."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "hostile-peers.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
KNOWN = {
    f"{letter}{number}" for letter, most in (("C", 6), ("H", 7), ("M", 5), ("L", 5)) for number in range(1, most + 1)
}


def test_every_row_names_a_test_and_no_way_to_break_the_library_is_left_out():
    rows = [
        line
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith(("| # ", "| command", "| `make"))
    ]
    assert len(rows) > 60
    assert [row for row in rows if not TEST.search(row)] == []
    assert {row.split("|")[1].strip() for row in rows} >= KNOWN
