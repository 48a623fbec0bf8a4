"""Fetching on a bulk channel: what a source has taken comes back in time when it becomes slow."""

import itertools
from types import SimpleNamespace

import pytest

from hansa.node.storage import bulk_chunks
from hansa.node.storage.bulk_chunks import LONGEST_RUN, REQUEST, UNDERWAY, bring_chunks, parse_request
from hansa.node.storage.bulk_line import LineBroken
from hansa.proto.blob import CHUNK_BYTES, MAX_BLOB_BYTES, BlobRef
from hansa.proto.errors import Malformed

CHUNK_S = 30.0
QUICK_S = 0.001
CHUNKS = 200


class Clock:
    """Moves only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


class Line:
    """A channel on which every chunk takes so long, as far as there is time for it."""

    def __init__(self, clock: Clock, takes_s) -> None:
        self._clock, self._takes_s = clock, takes_s
        self.broken = False
        self.slow_since_s: float | None = None

    def send_all(self, _view: memoryview, _due_s: float) -> None:
        pass

    def receive_into(self, view: memoryview, due_s: float) -> None:
        if len(view) == 1:
            view[0] = bulk_chunks.SENT
            return
        takes_s = next(self._takes_s)
        if takes_s > QUICK_S and self.slow_since_s is None:
            self.slow_since_s = self._clock.now_s
        self._clock.now_s = min(due_s, self._clock.now_s + takes_s)
        if self._clock.now_s == due_s:
            raise LineBroken("too slow")


class Lacking:
    """So many chunks in order, and who has which."""

    def __init__(self, count: int) -> None:
        self.next, self.count = 0, count
        self.longest = 0
        self.done_count = 0
        self.back: list[int] = []

    def take(self, most: int) -> range:
        run = range(self.next, min(self.count, self.next + most))
        self.next = run.stop
        self.longest = max(self.longest, len(run))
        return run

    def done(self, _size_bytes: int) -> None:
        self.done_count += 1

    def give_back(self, indices: range) -> None:
        self.back += indices


def brought(monkeypatch: pytest.MonkeyPatch, takes_s) -> tuple[Line, Lacking, Clock]:
    clock = Clock()
    monkeypatch.setattr(bulk_chunks, "time", clock)
    line, lacking = Line(clock, takes_s), Lacking(CHUNKS)
    partial = SimpleNamespace(
        ref=BlobRef(root=bytes(32), size_bytes=CHUNKS * CHUNK_BYTES), write=lambda _index, _chunk: None
    )
    try:
        bring_chunks(line, partial, lacking, CHUNK_S)
    except LineBroken:
        line.broken = True
    return line, lacking, clock


def test_a_source_that_becomes_slow_within_a_run_gives_back_what_it_took_in_time(monkeypatch):
    line, lacking, clock = brought(
        monkeypatch, itertools.chain(itertools.repeat(QUICK_S, 60), itertools.repeat(CHUNK_S * 0.9))
    )
    assert lacking.longest == LONGEST_RUN
    assert line.broken
    assert clock.now_s - line.slow_since_s <= UNDERWAY * CHUNK_S
    assert lacking.done_count + len(lacking.back) == lacking.next


def test_a_source_that_is_slow_and_steady_brings_all(monkeypatch):
    line, lacking, _ = brought(monkeypatch, itertools.repeat(CHUNK_S * 0.9))
    assert not line.broken
    assert lacking.longest == 1
    assert lacking.done_count == CHUNKS


@pytest.mark.parametrize(
    ("size_bytes", "first", "count"),
    [
        (MAX_BLOB_BYTES + 1, 0, 1),
        (10 * CHUNK_BYTES, 0, 0),
        (2 * LONGEST_RUN * CHUNK_BYTES, 0, LONGEST_RUN + 1),
        (10 * CHUNK_BYTES, 10, 1),
        (10 * CHUNK_BYTES, 9, 2),
    ],
)
def test_chunks_that_no_blob_has_and_too_many_at_once_cannot_be_asked_for(size_bytes, first, count):
    assert parse_request(REQUEST.pack(bytes(32), 10 * CHUNK_BYTES, 8, 2))[1] == range(8, 10)
    with pytest.raises(Malformed, match="no such chunks"):
        parse_request(REQUEST.pack(bytes(32), size_bytes, first, count))
