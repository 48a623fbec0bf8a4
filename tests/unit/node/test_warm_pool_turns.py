"""Whoever looks after prepared sandboxes leaves one alone that became a run's meanwhile."""

import socket
from collections.abc import Iterator

import pytest
import trio

from hansa.node.isolation.launcher_protocol import Kill, Message, Resume
from hansa.node.runs import warm_pool
from hansa.node.runs.warm_pool import PreparedSandbox, Shape, WarmPool


class _Pool(WarmPool):
    """One that holds two, of which the second becomes a run's while the launcher is told something of the first."""

    def __init__(self) -> None:
        self.told: list[Message] = []
        super().__init__(
            count=2,
            memory_bytes=1,
            ask=self._hear,
            launcher_there=lambda: True,
            sold_bytes=lambda: 2,
            say=lambda _words: None,
        )
        self.lines = []
        for name in (b"1" * 16, b"2" * 16):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self.lines += [ours, theirs]
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            self._held[name] = PreparedSandbox(name=name, shape=Shape(), stream=stream, standing=True)
        self.first, self.second = self._held.values()

    async def _hear(self, message: Message) -> None:
        self.told.append(message)
        if self.second.standing:
            self.second.standing = False
            self._forget(self.second.name)
        await trio.lowlevel.checkpoint()


@pytest.fixture
def pool() -> Iterator[_Pool]:
    one = _Pool()
    yield one
    for line in one.lines:
        line.close()


@pytest.mark.trio
async def test_what_became_a_runs_while_another_was_looked_at_is_left_alone(
    pool: _Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_pool, "LOOK_S", 0.01)
    monkeypatch.setattr(warm_pool, "ANSWER_S", 0.05)
    with trio.move_on_after(0.3):
        await pool._look_after()
    assert Resume(run=pool.first.name) in pool.told
    assert not [one for one in pool.told if one.run == pool.second.name]


@pytest.mark.trio
@pytest.mark.parametrize("way", ["make_room", "expect"])
async def test_what_became_a_runs_while_another_was_ended_is_left_alone(pool: _Pool, way: str) -> None:
    await (pool.make_room() if way == "make_room" else pool.expect(Shape(workers=2)))
    assert pool.told == [Kill(run=pool.first.name)]
    assert pool.second.stream is not None
    assert pool.second.stream.socket.fileno() >= 0, "it is the run's to close"
