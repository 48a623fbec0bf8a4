"""Three pipes over one terminal line: how a program without a terminal is spoken to through a shell.

A terminal has one stream each way and cannot say that input has ended; a program in a pipeline needs more. So a small
program at the terminal (``hansa.worker.piped``) starts it, and speaks in frames: one byte of kind, four of length, the
bytes. The line begins with ``GREETING`` once the terminal passes bytes as they are; what comes before is a complaint.
"""

from collections.abc import Iterator

GREETING = b"\0hansa pipes 1\n"
STDIN, STDOUT, STDERR = 0, 1, 2
"""A frame of stdin without bytes says that the input has ended."""
MAX_PIPE_BYTES = 16 << 10
_HEAD_BYTES = 5


class BrokenPipes(ValueError):
    """The bytes are no frames."""


def pack_piped(kind: int, data: bytes) -> bytes:
    """One frame."""
    assert len(data) <= MAX_PIPE_BYTES
    return bytes((kind,)) + len(data).to_bytes(4, "big") + data


class PipeReader:
    """Takes bytes in any pieces and gives frames."""

    def __init__(self, kinds: tuple[int, ...]) -> None:
        """Only frames of these kinds belong on the line."""
        self._kinds = kinds
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The frames that are complete with these bytes.

        Raises:
            BrokenPipes: a head that belongs to none.
        """
        self._held += data
        while len(self._held) >= _HEAD_BYTES:
            kind, size = self._held[0], int.from_bytes(self._held[1:_HEAD_BYTES], "big")
            if kind not in self._kinds or size > MAX_PIPE_BYTES:
                raise BrokenPipes("these bytes are no frames of a piped program")
            if len(self._held) < _HEAD_BYTES + size:
                return
            frame = bytes(self._held[_HEAD_BYTES : _HEAD_BYTES + size])
            del self._held[: _HEAD_BYTES + size]
            yield kind, frame
