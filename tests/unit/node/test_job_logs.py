"""What jobs print comes in pieces and is read back in lines."""

import resource
from pathlib import Path

import pytest

from hansa.node.daemon import job_logs
from hansa.node.daemon.job_logs import LONGEST_LINE_CHARS, JobLogs

JOB = b"j" * 32


def texts(tail: job_logs.Tail, *, last: bool = False) -> list[tuple[int, str]]:
    return [(line["shard"], line["text"]) for line in tail.lines(last=last)]


def test_every_line_is_one_entry_however_it_came(tmp_path: Path) -> None:
    logs = JobLogs(tmp_path)
    logs.append(JOB, 0, "one\ntwo\nthr", 1)
    logs.append(JOB, 0, "ee\n\n", 2)
    logs.append(JOB, 1, "other shard\n", 3)
    logs.append(JOB, 0, "no end", 4)
    tail = logs.tail(JOB, (0, 1))
    assert texts(tail) == [(0, "one"), (0, "two"), (0, "three"), (0, ""), (1, "other shard")]
    assert texts(tail) == []
    assert texts(tail, last=True) == [(0, "no end")]
    assert texts(tail, last=True) == []


def test_a_line_has_the_time_when_it_began(tmp_path: Path) -> None:
    logs = JobLogs(tmp_path)
    for at_ms, text in ((1, "a"), (2, "b\nc"), (3, "d\ne\n")):
        logs.append(JOB, 0, text, at_ms)
    assert [(line["at_ms"], line["text"]) for line in logs.tail(JOB, [0]).lines(last=True)] == [
        (1, "ab"),
        (2, "cd"),
        (3, "e"),
    ]


def test_a_tail_follows_what_comes_and_only_its_own_shards(tmp_path: Path) -> None:
    logs = JobLogs(tmp_path)
    tail = logs.tail(JOB, [1])
    assert texts(tail) == [], "no file is no fault"
    logs.append(JOB, 0, "not mine\n", 1)
    logs.append(JOB, 1, "mine\nhal", 1)
    assert texts(tail) == [(1, "mine")]
    logs.append(JOB, 1, "f\n", 2)
    assert texts(tail) == [(1, "half")]


def test_a_line_that_never_ends_is_cut(tmp_path: Path) -> None:
    logs = JobLogs(tmp_path)
    for _ in range(30):
        logs.append(JOB, 0, "x" * 500, 1)
    lengths = [len(text) for _, text in texts(logs.tail(JOB, [0]), last=True)]
    assert lengths == [LONGEST_LINE_CHARS] * 3 + [15_000 - 3 * LONGEST_LINE_CHARS]


def test_what_is_being_written_is_not_read_by_halves(tmp_path: Path) -> None:
    logs = JobLogs(tmp_path)
    logs.append(JOB, 0, "whole\n", 1)
    tail = logs.tail(JOB, [0])
    (path,) = tmp_path.rglob("*.jsonl")
    with path.open("a") as file:
        file.write('{"shard": 0, "at_ms": 2, "te')
    assert texts(tail) == [(0, "whole")]
    with path.open("a") as file:
        file.write('xt": "later\\n"}\n')
    assert texts(tail) == [(0, "later")]


def test_a_shard_that_prints_without_end_fills_its_file_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_logs, "MOST_BYTES", 1_000)
    logs = JobLogs(tmp_path)
    for _ in range(100):
        logs.append(JOB, 0, "a line of text\n", 1)
    (path,) = tmp_path.rglob("*.jsonl")
    assert path.stat().st_size <= 1_000
    assert path.parent.stat().st_mode & 0o077 == 0, "nobody else reads a developer's logs"


def test_a_log_that_cannot_be_kept_is_counted_and_ends_nobody(tmp_path: Path) -> None:
    logs = JobLogs(tmp_path / "logs")
    (tmp_path / "logs").write_text("in the way")
    for _ in range(3):
        logs.append(JOB, 0, "lost\n", 1)
    assert logs.counters["job logs: could not be written"] == 3
    (tmp_path / "logs").unlink()
    logs.append(JOB, 0, "kept\n", 2)
    assert texts(logs.tail(JOB, [0])) == [(0, "kept")]


def test_a_disk_that_takes_half_a_line_spoils_none_after_it(tmp_path: Path) -> None:
    logs = JobLogs(tmp_path)
    logs.append(JOB, 0, "whole\n", 1)
    (path,) = tmp_path.rglob("*.jsonl")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        logs.append(JOB, 0, "too much\n", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logs.append(JOB, 0, "more\n", 3)
    assert texts(logs.tail(JOB, [0])) == [(0, "whole"), (0, "more")]
