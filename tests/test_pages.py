"""What the pages name is there: linked pages and headings, files, and tests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "contracts" / "README.md", ROOT / "tests" / "README.md"]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
FILE = re.compile(
    r"`((?:proto|market|scheduler|node|worker|contracts|docs|tests|systemd|examples)/[\w./-]+\.\w+)(?:::(\w+))?`"
)
PLACEHOLDER = re.compile(r"PACKAGE|MODULE|NNNN")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The names that a heading can be linked by: small letters, no signs, dashes for spaces."""
    words = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in HEADING.findall(text_of(page)))
    return {each.replace(" ", "-") for each in words}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    astray = []
    for target in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (heading and to.suffix == ".md" and heading not in anchors(to)):
            astray.append(target)
    assert astray == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=named)
def test_every_file_and_test_that_a_page_names_is_there(page: Path) -> None:
    absent = []
    for path, test in FILE.findall(text_of(page)):
        if PLACEHOLDER.search(path):
            continue
        file = ROOT / path
        if not file.is_file() or (test and f"def {test}(" not in file.read_text(encoding="utf-8")):
            absent.append(f"{path}::{test}" if test else path)
    assert absent == []


def test_the_readers_of_pages_find_what_is_there() -> None:
    page = ROOT / "docs" / "threat-model.md"
    assert len(FILE.findall(text_of(page))) > 5
    assert len(LINK.findall(text_of(page))) > 5
    assert "the-other-sides-money" in anchors(page)
