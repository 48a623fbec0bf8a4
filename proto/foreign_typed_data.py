"""The digest of EIP-712 typed data that brings its own types: the JSON that wallets and other programs exchange.

For checking other people's vectors and for signing on behalf of a program that is not ours. Our own documents never
take this way. It knows the types ``uintN``, ``intN``, ``bool``, ``address``, ``bytes32``, ``bytes``, ``string``,
structs and ``X[]``, and refuses all others. Unlike in our own documents an integer of any width may be a decimal
string, because wallets write them so.
"""

import re
from typing import Annotated, Any, Final

from hansa.proto.errors import Malformed
from hansa.proto.keccak import keccak256
from hansa.proto.typed_data import encoder_of
from hansa.proto.typed_json import parse_json, read_decimal, read_exact_keys, read_value
from hansa.proto.units import Address, Bytes32, TwosComplement, Unsigned

Struct = tuple[tuple[str, str], ...]
"""The fields of a struct: pairs of type and name."""

DOMAIN_NAME: Final = "EIP712Domain"
DOMAIN_FIELDS: Final = {
    "name": "string",
    "version": "string",
    "chainId": "uint256",
    "verifyingContract": "address",
    "salt": "bytes32",
}
TYPES_LIMIT: Final = 64
FIELDS_LIMIT: Final = 256
KIND_LIMIT: Final = 160
"""Longest name of a type, its brackets included."""

_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,127}", re.ASCII)
_INTEGERS: Final[dict[str, Any]] = {
    f"{prefix}{bits}": Annotated[int, rule(bits)]
    for prefix, rule in (("uint", Unsigned), ("int", TwosComplement))
    for bits in range(8, 257, 8)
}
_ATOMS: Final[dict[str, Any]] = {"bool": bool, "address": Address, "bytes32": Bytes32, "bytes": bytes, "string": str}


def _atom(kind: str) -> Any:
    """The annotated type of an atomic type, or nothing."""
    return _INTEGERS.get(kind) or _ATOMS.get(kind)


def _innermost(kind: str) -> str:
    while kind.endswith("[]"):
        kind = kind[:-2]
    return kind


def read_types(raw: object) -> dict[str, Struct]:
    """Read the ``types`` of typed data.

    Raises:
        Malformed: they are no table of structs, or a struct uses a type that is neither in it nor known.
    """
    if type(raw) is not dict or not 0 < len(raw) <= TYPES_LIMIT:
        raise Malformed("types", f"is not an object of 1 to {TYPES_LIMIT} structs")
    structs: dict[str, Struct] = {}
    for struct_name, listed in raw.items():
        if _NAME.fullmatch(struct_name) is None or _atom(struct_name) is not None:
            raise Malformed("types", "has a struct with a name that is none")
        if type(listed) is not list or len(listed) > FIELDS_LIMIT:
            raise Malformed("types", f"has a struct that is no array of at most {FIELDS_LIMIT} fields")
        members = []
        for entry in listed:
            table = read_exact_keys(entry, ("name", "type"), "types")
            if type(table["name"]) is not str or _NAME.fullmatch(table["name"]) is None:
                raise Malformed("types", "has a field with a name that is none")
            kind = table["type"]
            inner = _innermost(kind) if type(kind) is str and len(kind) <= KIND_LIMIT else ""
            if _atom(inner) is None and inner not in raw:
                raise Malformed("types", "has a field of an unknown type")
            members.append((kind, table["name"]))
        if len({name for _, name in members}) != len(members):
            raise Malformed("types", "has a struct with one field name twice")
        structs[struct_name] = tuple(members)
    return structs


def encode_type_of(structs: dict[str, Struct], primary: str) -> str:
    """The type string of a struct, the structs that it refers to following in the order of their names."""
    found: set[str] = set()
    waiting = [primary]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [inner for kind, _ in structs[name] if (inner := _innermost(kind)) in structs]
    return "".join(
        f"{name}({','.join(f'{kind} {field}' for kind, field in structs[name])})"
        for name in (primary, *sorted(found - {primary}))
    )


def type_hashes_of(structs: dict[str, Struct]) -> dict[str, bytes]:
    """The type hash of every struct."""
    return {name: keccak256(encode_type_of(structs, name).encode()) for name in structs}


def _encode(structs: dict[str, Struct], hashes: dict[str, bytes], kind: str, raw: Any, where: str) -> bytes:
    if kind.endswith("[]"):
        if type(raw) is not list:
            raise Malformed(where, "is not a JSON array")
        return keccak256(b"".join([_encode(structs, hashes, kind[:-2], item, where) for item in raw]))
    if kind in structs:
        return _struct_hash(structs, hashes, kind, raw)
    hint = _atom(kind)
    if kind in _INTEGERS:
        value = read_decimal(raw, where) if type(raw) is str else raw
    else:
        value = read_value(hint, raw, where)
    return encoder_of(hint)(value, where)


def _struct_hash(structs: dict[str, Struct], hashes: dict[str, bytes], name: str, raw: object) -> bytes:
    table = read_exact_keys(raw, tuple(field for _, field in structs[name]), name)
    words = [hashes[name]]
    words += [_encode(structs, hashes, kind, table[field], f"{name}.{field}") for kind, field in structs[name]]
    return keccak256(b"".join(words))


def struct_hash_of(structs: dict[str, Struct], primary: str, raw: object) -> bytes:
    """The struct hash of parsed JSON read as one of the structs.

    Raises:
        Malformed: it is not exactly such a struct.
    """
    return _struct_hash(structs, type_hashes_of(structs), primary, raw)


def _domain_members(raw: dict[str, Any]) -> Struct:
    """The struct of a domain: of the five fields those that it has, in EIP-712's order."""
    return tuple((kind, name) for name, kind in DOMAIN_FIELDS.items() if name in raw)


def domain_separator_of(raw: object) -> bytes:
    """The separator of a domain that has any of EIP-712's five fields, and no others.

    Raises:
        Malformed: it is no such domain.
    """
    if type(raw) is not dict or not raw or not raw.keys() <= DOMAIN_FIELDS.keys():
        raise Malformed("domain", "is not an object of EIP-712's five domain fields")
    return struct_hash_of({DOMAIN_NAME: _domain_members(raw)}, DOMAIN_NAME, raw)


def foreign_digest(source: str | bytes | dict[str, Any]) -> bytes:
    """The digest that a wallet signs for typed data given as ``{types, primaryType, domain, message}``.

    Raises:
        TooLarge: the text is over 1 MiB.
        Malformed: it is no exact typed data of the known types.
    """
    raw = parse_json(source) if isinstance(source, str | bytes) else source
    table = read_exact_keys(raw, ("types", "primaryType", "domain", "message"), "typed data")
    structs = read_types(table["types"])
    primary = table["primaryType"]
    if type(primary) is not str or primary not in structs or primary == DOMAIN_NAME:
        raise Malformed("primaryType", "is not the name of one of the structs")
    try:
        separator = domain_separator_of(table["domain"])
        listed = structs.get(DOMAIN_NAME)
        if listed is not None and listed != _domain_members(table["domain"]):
            raise Malformed("types", "describes another domain than the one given")
        return keccak256(b"\x19\x01" + separator + struct_hash_of(structs, primary, table["message"]))
    except RecursionError:
        raise Malformed("message", "is nested too deeply") from None
