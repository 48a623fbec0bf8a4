"""Strangers' YAML: bounded, with places, nothing constructed, nothing unread in silence."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_yaml import LARGEST_BYTES, Value, read_documents, read_text

FILE = Path("job.yaml")


def one(text: str) -> Value:
    (document,) = read_documents(text, FILE)
    return document


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_documents(text, FILE)
    assert caught.value.hint
    return caught.value.what


def test_scalars_stay_the_text_that_was_written() -> None:
    top = one("python: 3.10\nanswer: no\ntime: 12:30\nnothing: ~\n")
    assert [top.need(key, "").text() for key in ("python", "answer", "time")] == ["3.10", "no", "12:30"]
    assert top.get("nothing") is None
    assert top.child("nothing") is not None


def test_every_value_knows_its_place() -> None:
    top = one("services:\n  web:\n    env:\n      - A=1\n      - B=2\n")
    env = top.need("services", "").need("web", "").need("env", "").items()
    assert [item.place for item in env] == ["services.web.env[0] (line 4)", "services.web.env[1] (line 5)"]
    assert env[1].fault("is wrong", "right it").what == "job.yaml:5: services.web.env[1]: is wrong"


def test_what_nobody_read_is_known() -> None:
    top = one("a: 1\nb:\n  c: 2\n  d: 3\ne: [1, {f: 2}]\ng: {h: 1}\n")
    top.get("a")
    top.need("b", "").get("c")
    for item in top.need("e", "").items():
        assert item.place
    top.need("g", "").skip()
    assert [value.path for value in top.unread()] == ["b.d", "e[1].f"]


def test_a_key_that_stands_twice_is_refused() -> None:
    assert refusal("a: 1\nb: 2\na: 3\n") == "job.yaml:3: a: stands twice"


def test_merged_keys_give_way_to_a_mappings_own() -> None:
    top = one("base: &base {a: 1, b: 2}\nmine:\n  <<: *base\n  b: 3\n")
    mine = top.need("mine", "")
    assert {key: value.text() for key, value in mine.entries()} == {"a": "1", "b": "3"}


def test_no_tag_constructs_anything() -> None:
    top = one("a: !!python/object/apply:os.system ['true']\n")
    assert top.need("a", "").items()[0].text() == "true"


def test_aliases_cannot_multiply_a_file() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 8)]
    assert "aliases make it larger than anybody writes" in refusal("\n".join(lines))


def test_more_aliases_than_anybody_writes_are_refused() -> None:
    assert "more than 64 aliases" in refusal("a: &a 1\nb: [" + ", ".join(["*a"] * 65) + "]\n")


def test_an_alias_to_itself_is_refused() -> None:
    assert "aliases make it larger" in refusal("a: &a\n  b: *a\n")


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 200, "- " * 3000, "a: [" + "[" * 50 + "]" * 51])
def test_depth_is_bounded_before_anything_is_made_of_it(text: str) -> None:
    assert "more than 40 levels deep" in refusal(text)


def test_the_number_of_values_is_bounded() -> None:
    assert "more than 20000 values" in refusal("[" + "1," * 30_000 + "]")


def test_a_file_larger_than_any_description_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        read_text(b"a" * (LARGEST_BYTES + 1), FILE)


@pytest.mark.parametrize(("data", "what"), [(b"", "is empty"), (b" \n\t", "is empty"), (b"\xff\xfe", "not UTF-8")])
def test_what_is_no_text_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        read_text(data, FILE)


def test_json_with_tabs_and_halves_of_characters_is_read() -> None:
    top = one('{\n\t"a": "\\ud83d\\ude00",\n\t"b": "\\ud83d"\n}')
    assert top.need("a", "").text() == "\N{GRINNING FACE}"
    top.need("b", "").text().encode()


def test_templates_are_filled_in_or_kept_as_text() -> None:
    (top,) = read_documents("a: {{.steps}}\nb: x-{{ .left }}\n", FILE, values={"steps": "7"})
    assert top.need("a", "").integer(0, 10) == 7
    assert top.need("b", "").text() == "x-{{.left}}"
    with pytest.raises(ConfigError, match="still the template") as caught:
        top.need("b", "").integer(0, 10)
    assert caught.value.hint == "give it a value: --set left=VALUE"


@given(st.text(max_size=200) | st.text(alphabet="{}[]&*:-\n \"'<>|#!%@`ab1", max_size=120))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_tree_or_a_refusal(text: str) -> None:
    with suppress(ConfigError):
        for document in read_documents(text, FILE):
            list(document.unread())
