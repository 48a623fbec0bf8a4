"""The records of a noise session: what has arrived is decrypted at once, and what is written leaves at once.

The library reads each record in two steps and through four layers, gives one at a time, and writes each record that it
sends by itself. The session, its keys and the form of the records are the library's; what is on the wire is the same.
"""

from typing import Any

from libp2p.abc import ISecureConn
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH, NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession

from hansa.node.network.libp2p_guards import BufferedSocket

LENGTH_BYTES = 2


class NoiseRecords:
    """Reads and writes in place of a session that has shaken hands. One task reads, one writes."""

    def __init__(self, session: Any, state: Any, socket: BufferedSocket) -> None:
        """``session`` may hold bytes that it has decrypted already."""
        self._session = session
        self._state = state
        self._socket = socket
        self._waiting = bytearray()

    async def read(self, n: int | None = None) -> bytes:  # noqa: ARG002  # the session's own form
        """All that is there, at least one byte; none at the end."""
        if self._session.low_watermark != self._session.high_watermark:
            left_over: bytes = await self._session.read(None)
            return left_over
        while True:
            plain = self._decrypt()
            if plain:
                return plain
            data = await self._socket.take()
            if not data:
                return b""
            self._waiting += data

    def _decrypt(self) -> bytes:
        """The records that are here whole. Whatever is wrong with one of them raises, and ends the connection."""
        waiting, at, found = self._waiting, 0, []
        while len(waiting) - at >= LENGTH_BYTES:
            end = at + LENGTH_BYTES + int.from_bytes(waiting[at : at + LENGTH_BYTES], "big")
            if end > len(waiting):
                break
            found.append(self._state.decrypt(bytes(waiting[at + LENGTH_BYTES : end])))
            at = end
        del waiting[:at]
        return found[0] if len(found) == 1 else b"".join(found)

    async def write(self, data: bytes) -> None:
        """All of it, in as few records as it takes."""
        view = memoryview(data)
        records: list[bytes] = []
        for at in range(0, len(data), MAX_PLAINTEXT_LENGTH):
            record = self._state.encrypt(bytes(view[at : at + MAX_PLAINTEXT_LENGTH]))
            records += (len(record).to_bytes(LENGTH_BYTES, "big"), record)
        await self._socket.write(b"".join(records))


def records_of(conn: ISecureConn) -> Any:
    """What to read and write a secured connection with: its records, if it is a noise session over a socket of ours."""
    if isinstance(conn, SecureSession) and isinstance(conn.conn, NoiseTransportReadWriter):
        socket = getattr(conn.conn.read_writer.read_write_closer, "stream", None)
        if isinstance(socket, BufferedSocket):
            return NoiseRecords(conn, conn.conn.noise_state, socket)
    return conn
