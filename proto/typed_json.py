"""Signed documents as JSON text, strictly: for files, wallets and people. On the wire they are msgpack.

One value has one spelling. uint128 and uint256 are decimal strings (JavaScript would round them), smaller integers are
JSON numbers, bytes are ``0x`` and lower-case hex. There are no floats, no repeated, missing or additional keys, and no
digits but ASCII ones. Any text becomes a document or ``Malformed``; nothing is guessed.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from hansa.proto.errors import Malformed, TooLarge
from hansa.proto.signing import checksum_address, parse_address
from hansa.proto.typed_data import check_value, element_of, is_document, members_of, solidity_type, struct_hash, unwrap
from hansa.proto.units import Unsigned

TEXT_LIMIT_BYTES: Final = 1 << 20
WIDEST_NUMBER_BITS: Final = 64
"""Integers wider than this are decimal strings."""

# 78 digits hold every uint256 and stay far below the 4,300 at which int() refuses with a ValueError of its own.
_DECIMAL_TEXT = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)
_HEX_TEXT = re.compile(r"0x(?:[0-9a-f]{2})*", re.ASCII)
DEPTH_LIMIT: Final = 64
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_JSON_INTEGER = re.compile(r"-?[0-9]{1,78}", re.ASCII)

Document = TypeVar("Document")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Malformed("JSON", "has a key twice in one object")
    return table


def _refuse_float(_text: str) -> Any:
    raise Malformed("JSON", "holds a number that is no integer")


def _read_integer(text: str) -> int:
    if _JSON_INTEGER.fullmatch(text) is None:
        raise Malformed("JSON", "holds an integer of more than 78 digits")
    return int(text)


def refuse_deep_nesting(text: str) -> None:
    """Json follows nesting on the C stack, as deep as the recursion limit lets it.

    Some libraries raise that limit to 100,000 when they are imported (py_ecc, below eth-account), and then 100 kB of
    brackets kill the process. So depth is counted here before json sees the text.
    """
    if text.count("[") + text.count("{") <= DEPTH_LIMIT:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in ("[", "{"):
            depth += 1
            if depth > DEPTH_LIMIT:
                raise Malformed("JSON", f"is nested deeper than {DEPTH_LIMIT}")
        elif match[0] in ("]", "}"):
            depth -= 1


def parse_json(text: str | bytes) -> Any:
    """Read JSON text with no floats, no constants such as NaN, no repeated keys and no giant integers.

    Raises:
        TooLarge: it is over 1 MiB.
        Malformed: it is anything but such JSON.
    """
    if len(text) > TEXT_LIMIT_BYTES:
        raise TooLarge("JSON", f"is longer than {TEXT_LIMIT_BYTES} bytes")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        refuse_deep_nesting(decoded)
        return json.loads(
            decoded,
            object_pairs_hook=_unique_keys,
            parse_float=_refuse_float,
            parse_constant=_refuse_float,
            parse_int=_read_integer,
        )
    except ValueError:
        # json's own errors and UnicodeDecodeError are ValueErrors; their texts repeat what was read.
        raise Malformed("JSON", "is no well-formed JSON text") from None


def read_decimal(raw: object, where: str) -> int:
    """Read a decimal string: ASCII digits, no sign, no leading zero, no "1_000".

    Raises:
        Malformed: it is anything else.
    """
    if type(raw) is not str or _DECIMAL_TEXT.fullmatch(raw) is None:
        raise Malformed(where, "is not a decimal string of at most 78 digits")
    return int(raw)


def read_exact_keys(raw: object, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """Make sure that a JSON object has exactly these keys.

    Raises:
        Malformed: it is no object, or a key is missing or additional.
    """
    if type(raw) is not dict:
        raise Malformed(where, "is not a JSON object")
    for name in names:
        if name not in raw:
            raise Malformed(f"{where}.{name}", "is missing")
    if len(raw) != len(names):
        raise Malformed(where, "has fields that it should not have")
    return raw


def read_value(hint: Any, raw: object, where: str) -> Any:
    """Turn one parsed JSON value into the value of an annotated type.

    Raises:
        Malformed: it is not the one spelling of an allowed value.
    """
    bare, rules = unwrap(hint)
    element = element_of(bare)
    if is_document(bare):
        return _read_document(bare, raw, where)
    value: Any
    if element is not None:
        if type(raw) is not list:
            raise Malformed(where, "is not a JSON array")
        value = tuple(read_value(element, item, f"{where}[{index}]") for index, item in enumerate(raw))
    elif bare is int and any(isinstance(rule, Unsigned) and rule.bits > WIDEST_NUMBER_BITS for rule in rules):
        value = read_decimal(raw, where)
    elif bare is bytes:
        value = _read_bytes(hint, raw, where)
    elif type(raw) is not bare:
        raise Malformed(where, f"is not JSON's {bare.__name__}")
    else:
        value = raw
    check_value(rules, value, where)
    return value


def _read_bytes(hint: Any, raw: object, where: str) -> bytes:
    if solidity_type(hint) == "address":
        try:
            return parse_address(raw)  # type: ignore[arg-type]  # it checks the type itself
        except Malformed as fault:
            raise Malformed(where, fault.why) from None
    if type(raw) is not str or _HEX_TEXT.fullmatch(raw) is None:
        raise Malformed(where, "is not 0x and lower-case hex")
    return bytes.fromhex(raw[2:])


def _read_document(cls: Any, raw: object, where: str) -> Any:
    members = members_of(cls)
    table = read_exact_keys(raw, tuple(member.name for member in members), where)
    return cls(
        **{
            member.attribute: read_value(member.hint, table[member.name], f"{where}.{member.name}")
            for member in members
        }
    )


def from_json(cls: type[Document], source: str | bytes | Mapping[str, Any]) -> Document:
    """Read a document of this class from JSON text, or from JSON that was parsed already.

    Raises:
        TooLarge: the text is over 1 MiB.
        Malformed: it is not the one spelling of a valid document.
    """
    raw = parse_json(source) if isinstance(source, str | bytes) else source
    document: Document = _read_document(cls, raw, cls.__name__)
    # Also refuses what only the encoder looks at, such as text that has no UTF-8.
    struct_hash(document)
    return document


def _plain(hint: Any, value: Any) -> Any:
    bare, rules = unwrap(hint)
    element = element_of(bare)
    if element is not None:
        return [_plain(element, item) for item in value]
    if is_document(bare):
        return {member.name: _plain(member.hint, getattr(value, member.attribute)) for member in members_of(bare)}
    if bare is bytes:
        return checksum_address(value) if solidity_type(hint) == "address" else "0x" + value.hex()
    if bare is int and any(isinstance(rule, Unsigned) and rule.bits > WIDEST_NUMBER_BITS for rule in rules):
        return str(value)
    return value


def to_plain(document: object) -> dict[str, Any]:
    """A document as the dicts, lists, strings and integers that JSON is made of.

    Raises:
        Malformed: a field's value is not of its exact type, length or range.
    """
    struct_hash(document)
    plain: dict[str, Any] = _plain(type(document), document)
    return plain


def to_json(document: object) -> str:
    """A document as JSON text, its fields in the order in which they are signed.

    Raises:
        Malformed: a field's value is not of its exact type, length or range.
    """
    return json.dumps(to_plain(document), separators=(",", ":"))
