"""What a worker has handed over: a state's bytes, or where they are to be fetched."""

from dataclasses import dataclass

SMALL_BYTES = 64 << 10
"""Up to here the bytes come with the word that they are there: a call to fetch them would take longer than they do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """The bytes of a state.

    Attributes:
        number: by which the worker knows them.
        data: the bytes themselves, if they are few; else the worker holds them until they are fetched or dropped.
    """

    number: int
    size_bytes: int
    data: bytes | None
