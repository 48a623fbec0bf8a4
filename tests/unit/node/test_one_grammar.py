"""One grammar of quantities: what ``needs`` reads is read the same in a job file, in the config and by a command."""

from pathlib import Path

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hansa.market.requirements import MOST_CORES_MILLI, parse_needs
from hansa.market.value_forms import duration_ms, size_bytes
from hansa.market.vocabulary import VOCABULARY
from hansa.node.commands.cli_devices import _notice_ms
from hansa.node.commands.cli_jobs import _duration_ms
from hansa.node.faults import ConfigError
from hansa.node.jobs.job_file import read_job_file
from hansa.node.jobs.job_needs import read_share
from hansa.node.quantities import format_duration, format_size
from hansa.node.settings.pricing_config import parse_factor
from hansa.node.settings.splits_config import read_percent
from hansa.node.toml_reader import TomlTable

_ODD = ("007", "1_000", "1,000", "1e3", ".5", "5.", "-1", "+1", "\N{ARABIC-INDIC DIGIT THREE}", "0.1234567", "9" * 19)
_UNITS = (
    (
        "",
        "B",
        "b",
        "k",
        "K",
        "kB",
        "KB",
        "kb",
        "KiB",
        "Ki",
        "M",
        "MB",
        "Mb",
        "MiB",
        "G",
        "GB",
        "gb",
        "GiB",
        "Gi",
        "TiB",
    ),
    ("ms", "MS", "s", "S", "sec", "m", "min", "MIN", "minutes", "h", "H", "hour", "d", "D", "days", "w", "week"),
    ("bit/s", "%", "$", "USD"),
)
NUMBERS = st.one_of(st.sampled_from(_ODD), st.decimals(0, 10_000, places=3).map(str), st.integers(0, 1 << 70).map(str))
UNITS = st.sampled_from(_UNITS).flatmap(st.sampled_from)
WRITTEN = st.builds(
    lambda parts, before, after: before + "".join(parts) + after,
    st.lists(
        st.builds("{}{}{}".format, NUMBERS, st.sampled_from(["", " ", "  "]), UNITS),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["", " "]),
    st.sampled_from(["", " "]),
)


def in_a_file(read, text: str):
    """What a TOML file's table makes of it."""
    try:
        return read(TomlTable(Path("file.toml"), "table", {"key": text, "share": text}, {}))
    except ConfigError:
        return None


def in_needs(term: str, text: str, field: str):
    try:
        return getattr(parse_needs(f'{term} "{text}"'), field)
    except ValueError:
        return None


def by_a_command(read, *arguments: str):
    try:
        return read(*arguments)
    except (ConfigError, click.UsageError):
        return None


@given(WRITTEN)
@example("24 gb")
@example("24Gi")
@example("1.1 GiB")
@example("1 GB 1 MB")
def test_a_size_is_the_same_in_every_place(text: str) -> None:
    said = in_a_file(lambda table: table.size_bytes("key", ""), text)
    assert in_needs("ram >=", text, "memory_bytes") == said


@given(WRITTEN)
@example("10m")
@example("1.5 h")
@example("1 h 30 min")
@example("2h30m")
@example("1 h 30 h")
@example("9223372036854775808 ms")
def test_a_length_of_time_is_the_same_in_every_place(text: str) -> None:
    said = in_a_file(lambda table: table.duration_ms("key", "", least=0), text)
    assert in_needs("deadline =", text, "deadline_ms") == said
    assert by_a_command(_duration_ms, text, "--deadline") == said
    assert by_a_command(_notice_ms, text) == said


@given(WRITTEN)
@example("0.123456789")
@example("$2.10")
@example("1" * 22)
@example("1" * 40)
def test_a_price_is_the_same_in_every_place(text: str) -> None:
    said = in_a_file(lambda table: table.price_e18("key", "", least=1), text)
    assert in_needs("price <=", text, "price_e18_per_device_ms") == said


@given(WRITTEN)
@example("0.5000")
@example(str(MOST_CORES_MILLI // 1_000))
@example(str(MOST_CORES_MILLI // 1_000 + 1))
@example("5000000")
def test_a_number_of_cores_is_the_same_in_every_place(text: str) -> None:
    def least(milli: int | None) -> int | None:
        return milli if milli is not None and milli >= 100 else None

    assert least(in_needs("cores >=", text, "cores_milli")) == in_a_file(
        lambda table: table.cores_milli("key", 1), text
    )


@given(WRITTEN)
@example("25 %")
@example("0.25")
@example("0.25000000")
@example("12.34567 %")
def test_a_share_is_the_same_in_every_place(text: str) -> None:
    try:
        ppm = int(VOCABULARY["share"].key(VOCABULARY["share"].read(text)))
    except ValueError:
        ppm = None
    try:
        factor_ppm = parse_factor(text)
    except ValueError:
        factor_ppm = None
    assert ppm is None or ppm == factor_ppm
    points = in_a_file(lambda table: read_percent(table, "key", ""), text)
    assert points is None or points * 100 == ppm
    whole_percents = ppm is not None and ppm % 100 == 0 and text.strip().endswith("%")
    assert (points is None) == (not whole_percents)
    assert in_a_file(read_share, text) == in_needs("share =", text, "clauses")


@given(st.integers(0, (1 << 63) - 1))
def test_what_is_shown_of_a_size_or_a_time_is_read_back_near_to_it(value: int) -> None:
    size, time_ms = size_bytes(format_size(value)), duration_ms(format_duration(value))
    assert 0 <= value - size <= value // 10
    assert 0 <= value - time_ms < max(1_000, 60_000 * (value >= 3_600_000))


def test_a_job_gets_no_less_of_a_core_by_needs_than_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("def train(job): ...\n")
    for line in ("cores = 0.01", 'needs = "cores >= 0.01"'):
        (tmp_path / "job.toml").write_text(f'name = "digits"\nentry = "train.py:train"\n[resources]\n{line}\n')
        with pytest.raises(ConfigError):
            read_job_file(tmp_path)
