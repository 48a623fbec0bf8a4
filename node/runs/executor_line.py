"""From the daemon to a runner: frames, and states that are read from the store while they are sent.

One task writes, so that neither a frame nor a state is ever cut off because somebody who wanted it sent was cancelled.
Frames go between the pieces of a state, so that a word to the run need not wait for gigabytes.
"""

from collections import deque
from typing import Any, BinaryIO, Final

import trio

from hansa.proto.frames import MAX_CHUNK_BYTES, Begin, Chunk, RoundResult, encode

MOST_WAITING: Final = 256
"""So many frames may wait for a sandbox that does not read."""

Header = Begin | RoundResult


class RunnerLine:
    """Everything that goes to one runner. What is sent before it is served waits."""

    def __init__(self) -> None:
        """Nobody is there yet."""
        self._frames: deque[bytes] = deque()
        self._states: deque[tuple[Header, BinaryIO | None]] = deque()
        self._changed = trio.Event()
        self._closed = False
        self._newest_round = -1

    async def send(self, frame: Any) -> None:
        """Have a frame sent; waits while too many wait already."""
        while len(self._frames) >= MOST_WAITING and not self._closed:
            await self._changed.wait()
        self.post(frame)

    def post(self, frame: Any) -> None:
        """Have a frame sent, at once or never."""
        if not self._closed:
            self._frames.append(encode(frame))
            self._wake()

    def post_round(self, header: RoundResult, file: BinaryIO) -> None:
        """Have a round's result sent, whose bytes are read from this file, which is then closed.

        Of those that were not begun yet only the newest stays: a runner that does not read holds one file open, and
        whoever is told of a round needs none before it.
        """
        if self._closed or header.round <= self._newest_round:
            file.close()
            return
        self._newest_round = header.round
        for older in [state for state in self._states if isinstance(state[0], RoundResult)]:
            self._states.remove(older)
            if older[1] is not None:
                older[1].close()
        self._states.append((header, file))
        self._wake()

    def post_first(self, begin: Begin, file: BinaryIO | None) -> None:
        """Have `Begin` sent before all that was wanted so far."""
        self._states.appendleft((begin, file))
        self._wake()

    async def serve(self, stream: trio.abc.SendStream) -> None:
        """Send what comes until cancelled. A stream that breaks is for the listener to notice."""
        try:
            while True:
                if self._states:
                    await self._send_state(stream, *self._states.popleft())
                elif self._frames:
                    await self._send_frames(stream)
                else:
                    await self._changed.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Nothing more goes out."""
        self._closed = True
        while self._states:
            _header, file = self._states.popleft()
            if file is not None:
                file.close()
        self._frames.clear()
        self._wake()

    async def _send_state(self, stream: trio.abc.SendStream, header: Header, file: BinaryIO | None) -> None:
        try:
            await stream.send_all(encode(header))
            left = header.size_bytes
            while left:
                await self._send_frames(stream)
                assert file is not None, "a header with bytes comes with a file"
                piece = await trio.to_thread.run_sync(file.read, min(left, MAX_CHUNK_BYTES))
                if not piece:
                    raise OSError("a blob is shorter than its name says")
                left -= len(piece)
                await stream.send_all(encode(Chunk(data=piece)))
        finally:
            if file is not None:
                file.close()

    async def _send_frames(self, stream: trio.abc.SendStream) -> None:
        while self._frames:
            await stream.send_all(self._frames.popleft())
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
