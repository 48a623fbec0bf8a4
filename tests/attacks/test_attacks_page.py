"""docs/attacks.md says of each attack what stands against it, and which test shows that."""

import re
from pathlib import Path

import pytest
from undefended import DEFENCES, Defence

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


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda each: f"{each.file}-{each.changes[0][0].strip()[:40]}")
def test_every_defence_that_can_be_taken_out_stands_where_it_is_said_to(defence: Defence):
    for file, old, _ in [(defence.file, *each) for each in defence.changes] + list(defence.beside):
        assert old in (ROOT / file).read_text(encoding="utf-8"), f"{file}: say in undefended.py what stands there now"
