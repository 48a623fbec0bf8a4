"""What is kept of the items of a pool that are settled, so that a run elsewhere need not do them again. Pure.

Each item's record is a small state of its own, in the form in which states travel: arrays and plain values, and nothing
that is executed when it is read. All of them lie one after the other in one run of bytes that only grows at its end,
so that a checkpoint shares its beginning with the one before it.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from hansa.proto.errors import ProtocolError
from hansa.proto.tensors import decode_state, encode_state

_HEAD = struct.Struct("<QQ")


class Records:
    """The records of one pool."""

    def __init__(self, first: int, count: int) -> None:
        """There are none yet of these items, which are numbered from ``first``."""
        self.first = first
        self.count = count
        self._data = bytearray()
        self._places: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        """How many items have a record."""
        return len(self._places)

    def __contains__(self, number: int) -> bool:
        """Whether this item has one."""
        return number in self._places

    def __iter__(self) -> Iterator[int]:
        """The items that have one, in the order in which they were settled."""
        return iter(list(self._places))

    @property
    def size_bytes(self) -> int:
        """What all of them take."""
        return len(self._data)

    def add(self, number: int, record: bytes) -> None:
        """Keep the record of an item."""
        assert self.first <= number < self.first + self.count, "an item of this pool"
        assert number not in self._places, "an item is settled once"
        self._data += _HEAD.pack(number, len(record))
        self._places[number] = (len(self._data), len(record))
        self._data += record

    def read(self, number: int) -> dict[str, Any]:
        """What an item's record says. The arrays in it are read-only."""
        at, size = self._places[number]
        record = decode_state(bytes(self._data[at : at + size]))
        assert isinstance(record, dict), "checked when it came"
        return record

    def to_state(self) -> dict[str, Any]:
        """All of it, as a part of a checkpoint."""
        return {"first": self.first, "count": self.count, "records": np.frombuffer(bytes(self._data), dtype=np.uint8)}


def value_record(value: Any) -> bytes:
    """The record of an item that is done.

    Raises:
        ProtocolError: the value holds something that cannot be kept.
    """
    return encode_state({"value": value})


def error_record(words: str) -> bytes:
    """The record of an item that failed."""
    return encode_state({"error": words})


def records_from_state(state: Any) -> Records | None:
    """The records that a checkpoint holds; ``None`` if it is not in order, and then everything has to be done again."""
    try:
        records, data = Records(state["first"], state["count"]), state["records"].tobytes()
        at = 0
        while at < len(data):
            number, size = _HEAD.unpack_from(data, at)
            record = data[at + _HEAD.size : at + _HEAD.size + size]
            at += _HEAD.size + size
            known = records.first <= number < records.first + records.count and number not in records
            told = decode_state(record)
            if not known or at > len(data) or not {"value", "error"} & told.keys():
                return None
            records.add(number, record)
    except (KeyError, TypeError, AttributeError, ValueError, struct.error, ProtocolError):
        return None
    return records
