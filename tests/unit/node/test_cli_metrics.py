"""What a job reported, as files that other programs read."""

import csv
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from kit.memory_desk import MemoryDesk, changed, job_view
from kit.served_desk import just, served

from hansa.node.api.http_api import build_api
from hansa.node.commands.cli import cli
from hansa.node.commands.event_file import Scalars, crc32c, event_file

JOB = "ab" * 32
AT_MS = 1_700_000_001_500


def event_class() -> Any:
    """TensorBoard's own messages, as its event.proto and summary.proto declare the parts that matter."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="tensorboard", syntax="proto3")
    value = file.message_type.add(name="Value")
    value.field.add(name="tag", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    value.field.add(name="simple_value", number=2, type=kinds.TYPE_FLOAT, label=kinds.LABEL_OPTIONAL)
    summary = file.message_type.add(name="Summary")
    summary.field.add(
        name="value", number=1, type=kinds.TYPE_MESSAGE, type_name=".tensorboard.Value", label=kinds.LABEL_REPEATED
    )
    event = file.message_type.add(name="Event")
    event.field.add(name="wall_time", number=1, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
    event.field.add(name="step", number=2, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL)
    event.field.add(name="file_version", number=3, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    event.field.add(
        name="summary", number=5, type=kinds.TYPE_MESSAGE, type_name=".tensorboard.Summary", label=kinds.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorboard.Event"))


EVENT = event_class()


def unmasked(data: bytes) -> int:
    (masked,) = struct.unpack("<I", data)
    turned = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF


def events_in(data: bytes) -> list[Any]:
    """Read a file of records as TensorBoard does, every checksum included."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert unmasked(data[8:12]) == crc32c(data[:8])
        body, data = data[12 : 12 + length], data[12 + length :]
        assert unmasked(data[:4]) == crc32c(body)
        data = data[4:]
        event = EVENT.FromString(body)
        assert not list(UnknownFieldSet(event))
        found.append(event)
    return found


@pytest.mark.parametrize(
    ("data", "sum_of_it"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4, as are the next two
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_the_checksum_is_castagnolis(data: bytes, sum_of_it: int) -> None:
    assert crc32c(data) == sum_of_it


@given(
    st.lists(
        st.builds(
            Scalars,
            step=st.integers(-(1 << 63), (1 << 63) - 1),
            at_ms=st.integers(0, 1 << 44),
            values=st.dictionaries(st.text(max_size=8), st.floats(width=32, allow_nan=False), max_size=4),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_step_comes_out_as_it_went_in(points: list[Scalars]) -> None:
    version, *events = events_in(b"".join(event_file(points)))
    assert version.file_version == "brain.Event:2"
    assert len(events) == len(points)
    for event, point in zip(events, points, strict=True):
        assert (event.step, event.wall_time) == (point.step, point.at_ms / 1000)
        assert {value.tag: value.simple_value for value in event.summary.value} == dict(point.values)


def test_numbers_beyond_32_bits_are_infinite_there() -> None:
    _, event = events_in(b"".join(event_file([Scalars(step=1, at_ms=0, values={"a": 1e300, "b": -1e300})])))
    assert [value.simple_value for value in event.summary.value] == [float("inf"), float("-inf")]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def desk() -> MemoryDesk:
    return MemoryDesk()


@pytest.fixture
def data(tmp_path: Path, desk: MemoryDesk) -> Iterator[Path]:
    (point,) = job_view(JOB)["history"]
    history = [
        changed(point, round=10, at_ms=AT_MS, metrics={"loss": 0.7, "=cmd()": 1.0}),
        changed(point, round=20, at_ms=AT_MS, metrics={"loss": 0.25, "acc\x1b[2J": 0.5}),
    ]
    desk.add(job_view(JOB, history=history))
    with served(tmp_path / "node", just(build_api(desk))) as directory:
        yield directory


def test_csv_has_a_column_for_each_metric_and_no_formulas_or_controls(data: Path) -> None:
    for options in ([], ["--csv"]):
        result = run("metrics", JOB, "--data", data, *options)
        assert result.exit_code == 0
        rows = list(csv.reader(io.StringIO(result.stdout)))
        assert rows[0][:4] == ["step", "time", "loss", "'=cmd()"]
        assert "\x1b" not in result.stdout
        assert rows[1] == ["10", "2023-11-14T22:13:21.500+00:00", "0.7", "1.0", ""]
        assert rows[2][2:] == ["0.25", "", "0.5"]


def test_json_is_one_document(data: Path) -> None:
    shown = json.loads(run("metrics", JOB[:8], "--data", data, "--json").stdout)
    assert shown["job"] == JOB
    assert shown["steps"][1] == {"step": 20, "at_ms": AT_MS, "metrics": {"loss": 0.25, "acc\x1b[2J": 0.5}}


def test_a_file_for_tensorboard_is_written_and_replaced(data: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert run("metrics", JOB, "--data", data, "--tensorboard", tmp_path / "board").exit_code == 0
    (written,) = [path for path in (tmp_path / "board").rglob("*") if path.is_file()]
    assert "tfevents" in written.name
    events = events_in(written.read_bytes())
    assert [(event.step, event.wall_time) for event in events[1:]] == [(10, AT_MS / 1000), (20, AT_MS / 1000)]
    assert events[1].summary.value[0].tag == "loss"


def test_a_job_that_reported_nothing_and_two_wishes_at_once_are_said(
    data: Path, desk: MemoryDesk, tmp_path: Path
) -> None:
    assert run("metrics", JOB, "--data", data, "--csv", "--json").exit_code == 2
    desk.add(job_view(JOB, history=[]))
    assert run("metrics", JOB, "--data", data).stdout == "step,time\n"
    result = run("metrics", JOB, "--data", data, "--tensorboard", tmp_path / "board")
    assert result.exit_code == 2
    assert "reported nothing yet" in result.stderr
    (tmp_path / "file").touch()
    desk.add(job_view(JOB))
    assert run("metrics", JOB, "--data", data, "--tensorboard", tmp_path / "file" / "below").exit_code == 2
