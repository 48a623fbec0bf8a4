"""docs/attacks.md says of each attack what stands against it, and which test shows that."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "attacks.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_row_has_an_attack_a_defence_and_a_test():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 40
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 3, row
        assert all(cells), row
        assert TEST.search(cells[2]) or cells[2].startswith("none"), row
