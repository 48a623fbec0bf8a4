"""The socket to the daemon. Many threads write frames, one sends what is large, one reads."""

import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from hansa.proto.frames import MAX_MESSAGE_BYTES, Chunk, Failed, Frame, FrameReader, encode

RECEIVE_BYTES = 256 << 10


class Wire:
    """Frames to the daemon and from it."""

    def __init__(self, connection: socket.socket) -> None:
        """Frames of several threads must not mix, nor chunks of two states."""
        self._connection = connection
        self._frame_lock = threading.Lock()
        self._whole_lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        """One frame; it may come between the chunks of a state."""
        data = encode(frame)
        with self._frame_lock:
            self._connection.sendall(data)

    def send_with(self, header: Frame, pieces: Iterable[bytes]) -> None:
        """A header and the bytes that it declares, with no other header in between."""
        with self._whole_lock:
            self.send(header)
            for piece in pieces:
                self.send(Chunk(data=piece))

    def fail(self, kind: str, words: str) -> None:
        """The run is over and not well."""
        cut = words.encode("utf-8", "replace")[: MAX_MESSAGE_BYTES - 8].decode("utf-8", "ignore")
        self.send(Failed(kind=kind, message=cut))

    def frames(self) -> Iterator[Any]:
        """What the daemon says, until it hangs up."""
        reader = FrameReader(from_runner=False)
        while data := self._connection.recv(RECEIVE_BYTES):
            yield from reader.feed(data)
