"""Royalties as people write them: exact, and refused in words where they are not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.api.job_json import spec_from_json, spec_to_json
from hansa.node.faults import ConfigError
from hansa.node.jobs.job_file import read_job_file
from hansa.node.settings.config import load_config
from hansa.node.settings.splits_config import parse_percent
from hansa.proto.errors import Malformed
from hansa.proto.splits import Split, percent

ONE, TWO = "0x" + "11" * 20, "0x" + "22" * 20
LEAST = 'name = "digits"\nentry = "train.py:train"\n'


def read(directory: Path, text: str):
    (directory / "train.py").write_text("def train(context): ...\n")
    (directory / "job.toml").write_text(LEAST + text)
    return read_job_file(directory).spec


@given(st.integers(0, 10_000))
def test_a_percentage_is_read_as_it_is_shown(bps: int) -> None:
    assert parse_percent(percent(bps)) == bps


@pytest.mark.parametrize("text", ["", "x", "-1", "1e2", "2.555", "100.01", "1,5", "٣", "2.5 % of it"])
def test_what_is_no_percentage_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"percent|100"):
        parse_percent(text)


def test_splits_are_sorted_and_travel_as_json(tmp_path: Path) -> None:
    tables = f'[[splits]]\naccount = "{TWO}"\npercent = "10"\n[[splits]]\naccount = "{ONE}"\npercent = "2.5 %"\n'
    spec = read(tmp_path, tables)
    assert spec.splits == (Split(account=b"\x11" * 20, bps=250), Split(account=b"\x22" * 20, bps=1_000))
    assert spec_from_json(spec_to_json(spec)) == spec
    raw = spec_to_json(spec)
    for wrong in ("11" * 20, "0x1", "0x" + "AA" * 20, 5):
        raw["splits"][0]["account"] = wrong
        with pytest.raises(Malformed):
            spec_from_json(raw)


@pytest.mark.parametrize(
    "tables",
    [
        'splits = "2.5"\n',
        f'[[splits]]\naccount = "{ONE}"\n',
        f'[[splits]]\naccount = "{ONE}"\npercent = 2.5\n',
        f'[[splits]]\naccount = "{ONE}"\npercent = "0"\n',
        f'[[splits]]\naccount = "{ONE}"\npercent = "1"\nnote = "x"\n',
        f'[[splits]]\naccount = "0x{"00" * 20}"\npercent = "1"\n',
        '[[splits]]\naccount = "somebody"\npercent = "1"\n',
        f'[[splits]]\naccount = "{ONE}"\npercent = "1"\n' * 2,
        f'[[splits]]\naccount = "{ONE}"\npercent = "60"\n[[splits]]\naccount = "{TWO}"\npercent = "60"\n',
        "".join(f'[[splits]]\naccount = "0x{number:040x}"\npercent = "1"\n' for number in range(1, 10)),
    ],
)
def test_splits_that_are_none_are_refused_with_a_way_out(tmp_path: Path, tables: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, tables)
    assert "splits" in str(caught.value)
    assert caught.value.hint


def test_nothing_is_split_and_a_minute_is_paid_ahead_where_a_job_says_nothing(tmp_path: Path) -> None:
    spec = read(tmp_path, "")
    assert (spec.splits, spec.max_prepay_ms) == ((), 60_000)
    assert read(tmp_path, '[budget]\nmax_prepay = "0 s"\n').max_prepay_ms == 0


def test_an_owner_says_how_much_may_go_to_others_and_who_pays_ahead(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[provider]\nenabled = false\n")
    least = load_config(tmp_path).provider
    assert (least.max_splits_bps, least.prepay_ms, least.prepay_from) == (1_000, 0, "strangers")
    (tmp_path / "config.toml").write_text(
        '[provider]\nmax_splits = "2.5 %"\nprepay = "5 min"\nprepay_from = "everybody"\n'
    )
    said = load_config(tmp_path).provider
    assert (said.max_splits_bps, said.prepay_ms, said.prepay_from) == (250, 300_000, "everybody")
    for wrong in (
        'max_splits = "a lot"',
        "max_splits = 10",
        'max_splits = "1"',
        'max_splits = "0.1"',
        'prepay = "5"',
        'prepay_from = "nobody"',
    ):
        (tmp_path / "config.toml").write_text(f"[provider]\n{wrong}\n")
        with pytest.raises(ConfigError):
            load_config(tmp_path)
