"""The units of everything that goes on the wire, with their ranges, and the exact arithmetic between them.

Every field of a wire dataclass is annotated with one of these types. The annotation is read at run time: the wire
codec, the typed-data encoder and the JSON reader all ask the same rule (``Unsigned``, ``Exactly``, ``AtMost`` ...)
whether a value is allowed. ``fault`` answers ``None`` or one clause in words that never repeats the value itself,
because a peer's value may be huge or hostile to a terminal.

Money is an integer count of the currency's smallest unit, 1e-6 of the currency (as with USDC). A price is an integer
too: smallest units for one millisecond of one device, times 1e18. There is no float on any path between the two.
"""

import re
from dataclasses import dataclass
from typing import Annotated

CURRENCY_DECIMALS = 6
PRICE_DECIMALS = 18
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Unsigned:
    """An integer from 0 to 2**bits - 1. A bool is not an integer here."""

    bits: int

    def fault(self, value: object) -> str | None:
        """Say what is wrong with the value, or nothing."""
        if type(value) is not int:
            return "is not an integer"
        if not 0 <= value < 1 << self.bits:
            return f"is outside 0 .. 2^{self.bits} - 1"
        return None


@dataclass(frozen=True, slots=True)
class TwosComplement:
    """An integer from -2**(bits - 1) to 2**(bits - 1) - 1. A bool is not an integer here."""

    bits: int

    def fault(self, value: object) -> str | None:
        """Say what is wrong with the value, or nothing."""
        if type(value) is not int:
            return "is not an integer"
        if not -(1 << self.bits - 1) <= value < 1 << self.bits - 1:
            return f"is outside -2^{self.bits - 1} .. 2^{self.bits - 1} - 1"
        return None


@dataclass(frozen=True, slots=True)
class Exactly:
    """Bytes of one length. A ``bytearray`` is refused: it could change after it was checked."""

    size_bytes: int

    def fault(self, value: object) -> str | None:
        """Say what is wrong with the value, or nothing."""
        if type(value) is not bytes:
            return "is not bytes"
        if len(value) != self.size_bytes:
            return f"is not exactly {self.size_bytes} bytes long"
        return None


@dataclass(frozen=True, slots=True)
class AtMost:
    """A limit on a length: bytes of ``bytes``, UTF-8 bytes of ``str``, items of a ``tuple``."""

    limit: int

    def fault(self, value: object) -> str | None:
        """Say what is wrong with the value, or nothing. The length is looked at before anything is encoded."""
        if type(value) is str:
            if len(value) > self.limit:
                return f"is longer than {self.limit} bytes of UTF-8"
            try:
                size_bytes = len(value.encode())
            except UnicodeEncodeError:
                return "is no Unicode text"
            return f"is longer than {self.limit} bytes of UTF-8" if size_bytes > self.limit else None
        if type(value) is bytes:
            return f"is longer than {self.limit} bytes" if len(value) > self.limit else None
        if type(value) is tuple:
            return f"has more than {self.limit} items" if len(value) > self.limit else None
        return "is neither text, bytes nor a tuple"


@dataclass(frozen=True, slots=True)
class AbsentMeans:
    """Marks a message's field that came later: what a message, or a journal, of the time before says by its absence.

    Only for what nobody signs: a document with another field is another document.

    Attributes:
        value: what the absence means.
        since: the first number of the message's protocol that has the field; it is not written under an earlier one.
    """

    value: object
    since: int


Rule = Unsigned | TwosComplement | Exactly | AtMost

Uint8 = Annotated[int, Unsigned(8)]
Uint16 = Annotated[int, Unsigned(16)]
Uint32 = Annotated[int, Unsigned(32)]
Uint64 = Annotated[int, Unsigned(64)]
Uint128 = Annotated[int, Unsigned(128)]
Uint256 = Annotated[int, Unsigned(256)]
Int64 = Annotated[int, TwosComplement(64)]

Address = Annotated[bytes, Exactly(20)]
"""An account: the last 20 bytes of keccak256 of its public key."""
Bytes32 = Annotated[bytes, Exactly(32)]
"""A digest, a salt, or an id that is one of these."""
Signature = Annotated[bytes, Exactly(65)]
"""r (32), s (32), v (1, either 27 or 28)."""
PublicKey = Annotated[bytes, Exactly(33)]
"""A secp256k1 public key, compressed."""

Line = Annotated[str, AtMost(256)]
"""A name or one line of text."""
Note = Annotated[str, AtMost(2048)]
"""A reason or a paragraph in words."""
Data = Annotated[bytes, AtMost(65536)]
"""Bytes with no meaning to the protocol."""

UnixMs = Uint64
"""A point in time: milliseconds since 1970-01-01T00:00:00Z."""
DurationMs = Uint64
"""A length of time in milliseconds."""
DeviceMs = Uint128
"""Milliseconds times devices: what is metered and paid for."""
Amount = Uint128
"""Money in the smallest unit: 1e-6 of the currency."""
PriceE18 = Uint128
"""Smallest units for one device-millisecond, times 1e18."""

_LARGEST_UINT128 = (1 << 128) - 1
# ASCII digits only: \d and str.isdigit would let other scripts' digits through. No sign, no exponent, no "1_000".
# 40 digits hold every uint128, and keep the text far below the length at which int() becomes slow or refuses.
_DECIMAL_TEXT = re.compile(r"([0-9]{1,40})(?:\.([0-9]{1,40}))?", re.ASCII)


def _split_decimal(text: str, what: str) -> tuple[int, int]:
    """A decimal text as the exact fraction ``numerator / 10**places``."""
    match = _DECIMAL_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"{what} must be a plain decimal number such as 2 or 1.25, with at most 40 digits a side")
    whole, fraction = match[1], match[2] or ""
    return int(whole + fraction), len(fraction)


def _join_decimal(value: int, places: int) -> str:
    """The exact decimal text of ``value / 10**places``, with all its places."""
    digits = str(value).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}"


def parse_amount(text: str) -> int:
    """Read an amount such as ``"1.25"`` in the currency; answer it in the smallest unit.

    Raises:
        ValueError: the text is no plain decimal number, is finer than the smallest unit, or is over 2^128 - 1 units.
    """
    numerator, places = _split_decimal(text, "an amount")
    if places > CURRENCY_DECIMALS:
        raise ValueError(f"an amount has at most {CURRENCY_DECIMALS} decimals: the smallest unit is 0.000001")
    amount: int = numerator * 10 ** (CURRENCY_DECIMALS - places)
    if amount > _LARGEST_UINT128:
        raise ValueError("an amount must be below 2^128 smallest units")
    return amount


def format_amount(amount: int) -> str:
    """Write an amount of smallest units in the currency, always with six decimals: ``1234567`` is ``"1.234567"``."""
    if type(amount) is not int:
        raise ValueError("an amount must be an integer of smallest units")
    if amount < 0:
        # A balance may be negative even though no field on the wire is.
        return "-" + _join_decimal(-amount, CURRENCY_DECIMALS)
    return _join_decimal(amount, CURRENCY_DECIMALS)


def price_per_hour_to_e18(text_decimal: str) -> int:
    """Turn a price for one device-hour in the currency, e.g. ``"2"`` or ``"1.25"``, into ``PriceE18``.

    The price on the wire is a rounded-up integer, so that an hour at this price never amounts to less than the price
    that the operator wrote: ``"2"`` gives 555555555555555556.

    Raises:
        ValueError: the text is no plain decimal number, has more than 18 decimals, or the price is over 2^128 - 1.
    """
    numerator, places = _split_decimal(text_decimal, "a price")
    if places > PRICE_DECIMALS:
        raise ValueError(f"a price has at most {PRICE_DECIMALS} decimals")
    divisor: int = HOUR_MS * 10**places
    price_e18: int = -(-numerator * 10 ** (CURRENCY_DECIMALS + PRICE_DECIMALS) // divisor)
    if price_e18 > _LARGEST_UINT128:
        raise ValueError("a price must be below 2^128 on the wire, which is about 1.2e21 an hour")
    return price_e18


def e18_to_price_per_hour(price_e18: int) -> str:
    """Write ``PriceE18`` as the currency for one device-hour, with six decimals, rounded to the nearest (half up).

    For the eye. Six decimals are one smallest unit an hour, so a price that a person wrote comes back as written.
    """
    if type(price_e18) is not int or price_e18 < 0:
        raise ValueError("a price must be an integer of at least 0")
    scale = 10**PRICE_DECIMALS
    return _join_decimal((price_e18 * HOUR_MS + scale // 2) // scale, CURRENCY_DECIMALS)


def amount_for(device_ms_total: int, price_e18: int) -> int:
    """What a running total of device-milliseconds costs: ``floor(device_ms_total * price_e18 / 1e18)``.

    Always on the total since the lease began, never on an interval: one floor of the sum instead of a sum of floors,
    so what is owed does not depend on how the time was cut.
    """
    if type(device_ms_total) is not int or device_ms_total < 0:
        raise ValueError("device-milliseconds must be an integer of at least 0")
    if type(price_e18) is not int or price_e18 < 0:
        raise ValueError("a price must be an integer of at least 0")
    amount: int = device_ms_total * price_e18 // 10**PRICE_DECIMALS
    return amount
