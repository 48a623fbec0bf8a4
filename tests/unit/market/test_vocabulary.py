"""Values have one form, strangers' values a sentence, and the tables in the documentation are those of the code."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.market.vocabulary import BUYERS_WORDS, OWNERS_WORDS, VOCABULARY, WORDS, Of, facts, page
from hansa.proto.market_documents import Fact

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("vram", "24GB", "24 GB"),
        ("vram", "25769803776 B", "24 GiB"),
        ("vram", "80Gi", "80 GiB"),
        ("vram", "1.5 GiB", "1536 MiB"),
        ("vram", "1.1 KiB", "1127 B"),
        ("vram", "0 B", "0 B"),
        ("wall", "24 h", "1 d"),
        ("wall", "5400 s", "90 min"),
        ("wall", "2 hours", "2 h"),
        ("download", "0.5 Gbit/s", "500 Mbit/s"),
        ("download", "100 MB/s", "800 Mbit/s"),
        ("download", "800 mbps", "800 Mbit/s"),
        ("reliability", "95 %", "0.95"),
        ("reliability", "1.0", "1"),
        ("cuda", "v12.0", "12"),
        ("driver", "535.086.05", "535.86.5"),
        ("price", "2.10", "2.1"),
        ("price", "0.123456789", "0.123456789"),
        ("wall", "1 h 30 min", "90 min"),
        ("wall", "2d12h", "60 h"),
        ("price", "10", "10"),
        ("cores", "0.50", "0.5"),
        ("region", "  Frankfurt,   DE ", "frankfurt, de"),
        ("region", "a; b", "a b"),
        ("licence", "MIT, bsd,mit", "bsd,mit"),
        ("gpu", "rtx_4090", "RTX4090"),
        ("buyer", "0x52908400098527886E0F7030069857D2E4169EE7", "0x52908400098527886e0f7030069857d2e4169ee7"),
    ],
)
def test_a_value_has_one_form(name, text, form):
    assert VOCABULARY[name].read(text) == form
    assert VOCABULARY[name].read(form) == form


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vram", "24"),
        ("vram", "24 GB/s"),
        ("vram", "99999999999 TiB"),
        ("vram", "-1 GB"),
        ("vram", "1.5 B"),
        ("wall", "1e3 s"),
        ("wall", "0.0001 ms"),
        ("reliability", "1.01"),
        ("reliability", "101 %"),
        ("cuda", "12.x"),
        ("cuda", "9" * 300),
        ("price", "$2.10"),
        ("price", "0.1234567890123456789"),
        ("wall", "30 min 1 h"),
        ("wall", "1 h 1 h"),
        ("wall", "1.5 h 10 min"),
        ("wall", "1 h 1.5 min"),
        ("wall", "106751991167 d 106751991167 h"),
        ("download", "500 Mb/s"),
        ("download", "500 mb/s"),
        ("cores", "0.0001"),
        ("devices", "2.5"),
        ("region", ""),
        ("region", "a\nb\x00"),
        ("region", "x" * 300),
        ("licence", ","),
        ("licence", ",".join(map(str, range(99)))),
        ("buyer", "0x12"),
        ("tier", "vault"),
        ("lease", "forever"),
        ("gpu", ""),
    ],
)
def test_what_is_no_value_is_told_and_never_a_crash(name, text):
    with pytest.raises(ValueError, match=r"^(is|has) "):
        VOCABULARY[name].read(text)


@given(st.sampled_from(WORDS), st.text(max_size=30))
def test_any_text_is_a_value_with_one_form_or_a_sentence(word, text):
    try:
        form = word.read(text)
    except ValueError as fault:
        assert str(fault)  # noqa: PT017  # most texts are none
        return
    assert word.read(form) == form
    if word.is_ordered:
        assert word.key(form) == word.key(word.read(text))


def test_versions_are_in_the_order_of_their_parts():
    key = VOCABULARY["cuda"].key
    assert key("12.10") > key("12.9") > key("12") > key("9.9")


def test_the_next_value_is_one_step_away():
    assert VOCABULARY["wall"].stepped("1 h", -1) == "3599999 ms"
    assert VOCABULARY["devices"].stepped("4", 1) == "5"
    assert VOCABULARY["devices"].stepped("0", -1) == ""
    assert VOCABULARY["region"].stepped("de", 1) == ""


def test_facts_are_sorted_and_in_form():
    assert facts({"region": "DE", "cuda": "12.0", "driver": ""}) == (
        Fact(name="cuda", value="12"),
        Fact(name="region", value="de"),
    )


def test_owners_and_buyers_state_only_what_there_are_words_for():
    assert set(OWNERS_WORDS) < VOCABULARY.keys()
    assert all(Of.JOB in VOCABULARY[name].of for name in BUYERS_WORDS)


@pytest.mark.parametrize(("file", "of_jobs"), [("writing-jobs.md", False), ("running-a-node.md", True)])
def test_the_documentations_tables_are_fresh(file, of_jobs):
    hint = f"print(vocabulary.page(of_jobs={of_jobs})) between the marks in docs/{file}"
    assert f"<!-- vocabulary -->\n{page(of_jobs=of_jobs)}<!-- end -->\n" in (DOCS / file).read_text(), hint
