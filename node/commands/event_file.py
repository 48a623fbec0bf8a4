"""Scalars in the form that TensorBoard reads: records with checksums, each holding one small protobuf message.

A record is a length, a checksum of it, the bytes, a checksum of them. The first names the format's version, and then
there is one for each step with its values. Only that much of the format is written here.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

VERSION = b"brain.Event:2"
_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78
"""Of CRC-32C (Castagnoli), with its bits reversed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalars:
    """What was measured at one step."""

    step: int
    at_ms: int
    values: Mapping[str, float]


def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        entries.append(value)
    return tuple(entries)


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The checksum by Castagnoli's polynomial, which zlib does not have."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    # A checksum over bytes that hold a checksum says little, so that it is turned and shifted first.
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + _MASK_DELTA) & 0xFFFFFFFF)


def _record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + _masked(length) + event + _masked(event)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative step as two's complement, as protobuf has it
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def _field(number: int, data: bytes) -> bytes:
    """A field of protobuf's wire type 2: bytes, text, or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _event(at_ms: int, step: int, what: bytes) -> bytes:
    # Event: wall_time = 1 (double), step = 2 (int64), file_version = 3, summary = 5.
    return b"\x09" + struct.pack("<d", at_ms / 1000) + b"\x10" + _varint(step) + what


def event_file(points: Iterable[Scalars]) -> Iterator[bytes]:
    """The file's bytes, record by record."""
    is_first = True
    for point in points:
        if is_first:
            yield _record(_event(point.at_ms, 0, _field(3, VERSION)))
            is_first = False
        # Summary: value = 1, repeated; each with tag = 1 (text) and simple_value = 2 (float).
        summary = b"".join(
            _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", _in_range(value)))
            for name, value in point.values.items()
        )
        yield _record(_event(point.at_ms, point.step, _field(5, summary)))


def _in_range(value: float) -> float:
    """TensorBoard's scalars have 32 bits; what is larger becomes infinite there."""
    largest = 3.4028234663852886e38
    if abs(value) <= largest:
        return value
    return float("inf") if value > 0 else float("-inf")
