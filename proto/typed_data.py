"""Strict EIP-712: what is signed is the digest of a typed document, never its encoding on the wire.

A signed document is a frozen, slotted, keyword-only dataclass. Its class name is the struct's name, its annotated field
types (``hansa.proto.units``) are the struct's types, and its field names become camelCase:

    ``Address`` → address · ``Bytes32`` → bytes32 · ``UintN`` → uintN · ``Int64`` → int64 · ``bool`` → bool ·
    ``str`` → string · other ``bytes`` → bytes · ``tuple[X, ...]`` → X[] · another such dataclass → that struct

A class whose Solidity name for a field is not plain camelCase says so in ``TYPED_NAMES: ClassVar = {"field": "name"}``.

Every value is checked before it is hashed: exact Python type (a bool is no integer), exact length, range. Encoders that
coerce instead give one digest to several documents (-5, 0 and ``b""`` as one bytes32 in a well-known library), and then
a signature stands under something that its signer never saw. Types and their hashes are worked out once per class.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

from hansa.proto.errors import Malformed
from hansa.proto.keccak import keccak256
from hansa.proto.units import Address, Bytes32, Exactly, Rule, TwosComplement, Uint256, Unsigned

Encoder = Callable[[Any, str], bytes]
"""Turns one value into its 32 bytes of struct encoding, or raises ``Malformed`` naming the place it was given."""

ADDRESS_BYTES: Final = 20
WORD_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One field of a document.

    Attributes:
        attribute: its name in Python, e.g. ``"price_e18_per_device_ms"``.
        name: its name in the struct, e.g. ``"priceE18PerDeviceMs"``.
        hint: the annotated Python type, with its rules.
        solidity: the type in the struct, e.g. ``"uint128"``.
    """

    attribute: str
    name: str
    hint: Any
    solidity: str


def camel_case(attribute: str) -> str:
    """``price_e18_per_device_ms`` is ``priceE18PerDeviceMs``."""
    first, *rest = attribute.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def unwrap(hint: Any) -> tuple[Any, tuple[Rule, ...]]:
    """An annotated type as the bare type and its rules."""
    if get_origin(hint) is Annotated:
        bare, *metadata = get_args(hint)
        return bare, tuple(rule for rule in metadata if isinstance(rule, Rule))
    return hint, ()


def element_of(bare: Any) -> Any:
    """The X of ``tuple[X, ...]``, or nothing when the type is no such tuple."""
    if get_origin(bare) is tuple:
        arguments = get_args(bare)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return arguments[0]
    return None


def is_document(bare: Any) -> bool:
    """Whether the type is a class of documents."""
    return isinstance(bare, type) and is_dataclass(bare)


def solidity_type(hint: Any) -> str:
    """The struct type that an annotated Python type stands for.

    Raises:
        TypeError: it stands for none. That is a fault in a class of ours, met when the class is first used.
    """
    bare, rules = unwrap(hint)
    element = element_of(bare)
    if element is not None:
        return solidity_type(element) + "[]"
    if is_document(bare):
        return str(bare.__name__)
    if bare is bool:
        return "bool"
    if bare is str:
        return "string"
    for rule in rules:
        if bare is int and isinstance(rule, Unsigned):
            return f"uint{rule.bits}"
        if bare is int and isinstance(rule, TwosComplement):
            return f"int{rule.bits}"
        if bare is bytes and isinstance(rule, Exactly) and rule.size_bytes == ADDRESS_BYTES:
            return "address"
        if bare is bytes and isinstance(rule, Exactly) and rule.size_bytes == WORD_BYTES:
            return "bytes32"
    if bare is bytes:
        return "bytes"
    raise TypeError(f"{hint} has no type in EIP-712")


@cache
def members_of(cls: type) -> tuple[Member, ...]:
    """The fields of a class of documents, in their order.

    Raises:
        TypeError: the class is no frozen, slotted, keyword-only dataclass, or a field has no type in EIP-712.
    """
    if not is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is no dataclass")
    parameters = cls.__dataclass_params__  # type: ignore[attr-defined]  # in every dataclass, but in no type stub
    if not (parameters.frozen and "__slots__" in cls.__dict__ and all(item.kw_only for item in fields(cls))):
        raise TypeError(f"{cls.__name__} must be a frozen, slotted, keyword-only dataclass to be signed")
    hints = get_type_hints(cls, include_extras=True)
    names = getattr(cls, "TYPED_NAMES", {})
    members = tuple(
        Member(
            attribute=item.name,
            name=names.get(item.name, camel_case(item.name)),
            hint=hints[item.name],
            solidity=solidity_type(hints[item.name]),
        )
        for item in fields(cls)
    )
    if len({member.name for member in members}) != len(members):
        raise TypeError(f"two fields of {cls.__name__} have one name in the struct")
    return members


def _collect_documents(cls: type, found: dict[str, type]) -> None:
    """Collect the classes of documents that a class holds, itself included, by name."""
    if found.setdefault(cls.__name__, cls) is not cls:
        raise TypeError(f"two different classes are called {cls.__name__}")
    for member in members_of(cls):
        bare, _ = unwrap(member.hint)
        while (element := element_of(bare)) is not None:
            bare, _ = unwrap(element)
        if is_document(bare) and found.get(bare.__name__) is not bare:
            _collect_documents(bare, found)


def documents_below(cls: type) -> dict[str, type]:
    """The classes of documents that a class holds, itself included, by name."""
    found: dict[str, type] = {}
    _collect_documents(cls, found)
    return found


@cache
def encode_type(cls: type) -> str:
    """The struct's type string, e.g. ``"Voucher(bytes32 channelId,uint128 cumulative,bytes32 statement)"``.

    Structs that it refers to follow in the order of their names, as EIP-712 wants it.
    """
    found = documents_below(cls)
    del found[cls.__name__]
    return "".join(
        f"{each.__name__}({','.join(f'{member.solidity} {member.name}' for member in members_of(each))})"
        for each in (cls, *(found[name] for name in sorted(found)))
    )


@cache
def type_hash(cls: type) -> bytes:
    """keccak256 of the type string. It goes first into every struct hash, so no two types share a digest."""
    return keccak256(encode_type(cls).encode())


def check_value(rules: tuple[Rule, ...], value: object, where: str) -> None:
    """Hold a value against the rules of its type.

    Raises:
        Malformed: a rule refuses it.
    """
    for rule in rules:
        fault = rule.fault(value)
        if fault is not None:
            raise Malformed(where, fault)


def _integer_encoder(rules: tuple[Rule, ...]) -> Encoder:
    (rule,) = rules
    signed = isinstance(rule, TwosComplement)

    def encode(value: Any, where: str) -> bytes:
        fault = rule.fault(value)
        if fault is not None:
            raise Malformed(where, fault)
        encoded: bytes = value.to_bytes(WORD_BYTES, "big", signed=signed)
        return encoded

    return encode


def _word_encoder(rules: tuple[Rule, ...]) -> Encoder:
    """Addresses and bytes32: both stand in one word, an address at its right end."""
    (rule,) = rules

    def encode(value: Any, where: str) -> bytes:
        fault = rule.fault(value)
        if fault is not None:
            raise Malformed(where, fault)
        padded: bytes = value.rjust(WORD_BYTES, b"\0")
        return padded

    return encode


def _bytes_encoder(rules: tuple[Rule, ...]) -> Encoder:
    def encode(value: Any, where: str) -> bytes:
        if type(value) is not bytes:
            raise Malformed(where, "is not bytes")
        check_value(rules, value, where)
        return keccak256(value)

    return encode


def _text_encoder(rules: tuple[Rule, ...]) -> Encoder:
    def encode(value: Any, where: str) -> bytes:
        if type(value) is not str:
            raise Malformed(where, "is not text")
        check_value(rules, value, where)
        try:
            return keccak256(value.encode())
        except UnicodeEncodeError:
            # Lone surrogates live in Python strings and in JSON escapes, but in no UTF-8.
            raise Malformed(where, "is no Unicode text") from None

    return encode


def _encode_bool(value: Any, where: str) -> bytes:
    if type(value) is not bool:
        raise Malformed(where, "is not a bool")
    return value.to_bytes(WORD_BYTES, "big")


def _array_encoder(rules: tuple[Rule, ...], encode_element: Encoder) -> Encoder:
    def encode(value: Any, where: str) -> bytes:
        if type(value) is not tuple:
            raise Malformed(where, "is not a tuple")
        check_value(rules, value, where)
        return keccak256(b"".join([encode_element(item, f"{where}[{index}]") for index, item in enumerate(value)]))

    return encode


def _document_encoder(cls: type) -> Encoder:
    def encode(value: Any, where: str) -> bytes:
        if type(value) is not cls:
            raise Malformed(where, f"is not a {cls.__name__}")
        return struct_hash(value)

    return encode


@cache
def encoder_of(hint: Any) -> Encoder:
    """The function that checks and encodes values of an annotated type."""
    bare, rules = unwrap(hint)
    element = element_of(bare)
    if element is not None:
        return _array_encoder(rules, encoder_of(element))
    if is_document(bare):
        return _document_encoder(bare)
    if bare is bool:
        return _encode_bool
    if bare is str:
        return _text_encoder(rules)
    if bare is int:
        return _integer_encoder(rules)
    if solidity_type(hint) == "bytes":
        return _bytes_encoder(rules)
    return _word_encoder(rules)


@cache
def _encoders(cls: type) -> tuple[tuple[Callable[[Any], Any], Encoder, str], ...]:
    return tuple(
        (operator.attrgetter(member.attribute), encoder_of(member.hint), f"{cls.__name__}.{member.name}")
        for member in members_of(cls)
    )


def struct_hash(document: object) -> bytes:
    """keccak256 of the type hash and the encoded fields, after every field was checked.

    Raises:
        Malformed: a field's value is not of its exact type, length or range.
    """
    cls: Any = type(document)
    words = [type_hash(cls)]
    words += [encode(get(document), where) for get, encode, where in _encoders(cls)]
    return keccak256(b"".join(words))


DOMAIN_TYPE: Final = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """Where a signature counts: one name and version, one chain, one contract. Anywhere else it is worth nothing.

    Attributes:
        separator: the hash of the other four, worked out once.
    """

    name: str
    version: str
    chain_id: Uint256
    verifying_contract: Address
    separator: Bytes32 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the four fields and hash them."""
        words = (
            keccak256(DOMAIN_TYPE.encode()),
            _text_encoder(())(self.name, "EIP712Domain.name"),
            _text_encoder(())(self.version, "EIP712Domain.version"),
            _integer_encoder((Unsigned(256),))(self.chain_id, "EIP712Domain.chainId"),
            _word_encoder((Exactly(ADDRESS_BYTES),))(self.verifying_contract, "EIP712Domain.verifyingContract"),
        )
        object.__setattr__(self, "separator", keccak256(b"".join(words)))


def digest(domain: Domain, document: object) -> bytes:
    """The 32 bytes that are signed: keccak256 of 0x1901, the domain's separator and the document's struct hash.

    Raises:
        Malformed: a field's value is not of its exact type, length or range.
    """
    return keccak256(b"\x19\x01" + domain.separator + struct_hash(document))
