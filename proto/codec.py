"""Frozen dataclasses to msgpack and back, with every type, range and length checked on the way in.

One codec serves the wire and the journal. A value is ``[version, type name, {field: value}]``; the reader is built once
for each dataclass from its annotations, takes exactly the fields that the class has, and turns *any* bytes into a value
or a ``ProtocolError``. Nothing is ever executed, looked up by a name from the wire outside the given types, or kept
before its length was checked.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union

import msgpack

from hansa.proto.errors import Malformed, ProtocolError, TooLarge, UnsupportedVersion
from hansa.proto.protocols import VERSION
from hansa.proto.units import AbsentMeans, AtMost, Rule, Unsigned

T = TypeVar("T")
Reader = Callable[[Any, str], Any]

DEFAULT_TEXT_BYTES = 16 << 10
DEFAULT_BYTES = 64 << 10
DEFAULT_ITEMS = 4096


NEWEST = sys.maxsize


def encode(value: Any, *, number: int = NEWEST) -> bytes:
    """Any value of a frozen dataclass as bytes.

    Args:
        value: what to write.
        number: of the protocol that it is said on; fields of a message that came with a later one are left out.
    """
    return bytes(msgpack.packb([VERSION, type(value).__name__, _plain(value, number)], use_bin_type=True))


def decode(data: bytes, kinds: Any, *, limit_bytes: int, oldest: int = VERSION) -> Any:
    """Bytes as a value of one of ``kinds``, or a ``ProtocolError``.

    Args:
        data: what came from the peer.
        kinds: a dataclass, or a union of dataclasses.
        limit_bytes: more than this is refused before it is looked at.
        oldest: the oldest version that is read: only a ledger, which is kept for ever, has older ones than today's.
    """
    if len(data) > limit_bytes:
        raise TooLarge("message", f"{len(data)} bytes, and at most {limit_bytes} are allowed")
    try:
        raw = msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True, object_pairs_hook=_each_once)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as fault:
        raise Malformed("message", "not msgpack of the allowed form") from fault
    if type(raw) is not list or len(raw) != 3:
        raise Malformed("message", "not [version, name, fields]")
    version, name, fields = raw
    if type(version) is not int or type(name) is not str:
        raise Malformed("message", "not [version, name, fields]")
    if not oldest <= version <= VERSION:
        raise UnsupportedVersion("message", f"version {min(max(version, -1), 1 << 32)}, and only {VERSION} is spoken")
    kind = _by_name(kinds).get(name)
    if kind is None:
        raise Malformed("message", "no message of that name belongs here")
    return _reader(kind)(fields, _bare_name(kind))


def _plain(value: Any, number: int = NEWEST) -> Any:
    """The value as msgpack's own types. Only a message has fields that came later, and nothing within it."""
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        later = _later(kind, number) if number != NEWEST else ()
        return {
            field.name: _plain_field(value, field.name)
            for field in dataclasses.fields(value)
            if field.name not in later
        }
    if isinstance(value, tuple | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, frozenset) else value)]
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    return _wide(value) if type(value) is int and not -(1 << 63) <= value < 1 << 64 else value


def _wide(value: int) -> bytes:
    """An integer that msgpack has no form for, as two's complement with room for the sign."""
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _read_wide(value: bytes, where: str) -> int:
    number = int.from_bytes(value, "big", signed=True) if 8 < len(value) <= 33 else 0
    if -(1 << 63) <= number < 1 << 64 or _wide(number) != value:
        raise Malformed(where, "is not the one form of a large integer")
    return number


def _each_once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _plain_field(owner: Any, name: str) -> Any:
    value = getattr(owner, name)
    kind: Any = type(owner)
    if dataclasses.is_dataclass(value) and _is_choice(_hints(kind).get(name)):
        return [type(value).__name__, _plain(value)]
    return _plain(value)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _marks(hint: Any) -> list[AbsentMeans]:
    """Whether a field may be absent, and what that means."""
    arguments = typing.get_args(hint) if typing.get_origin(hint) is Annotated else ()
    return [each for each in arguments if isinstance(each, AbsentMeans)]


@cache
def _later(kind: Any, number: int) -> frozenset[str]:
    """Fields that came with a later number than this."""
    return frozenset(name for name, hint in _hints(kind).items() if any(mark.since > number for mark in _marks(hint)))


def _bare_name(kind: Any) -> str:
    return str(getattr(typing.get_origin(kind) or kind, "__name__", kind))


def _members(kinds: Any) -> tuple[Any, ...]:
    return typing.get_args(kinds) if typing.get_origin(kinds) in (Union, types.UnionType) else (kinds,)


def _is_choice(annotation: Any) -> bool:
    """Whether a field may hold one of several dataclasses, so that its value must name its type."""
    return sum(dataclasses.is_dataclass(typing.get_origin(member) or member) for member in _members(annotation)) > 1


@cache
def _by_name(kinds: Any) -> dict[str, Any]:
    return {_bare_name(kind): kind for kind in _members(kinds)}


@cache
def _reader(annotation: Any) -> Reader:
    """The function that checks and rebuilds a value of this annotated type."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _annotated_reader(*typing.get_args(annotation))
    if dataclasses.is_dataclass(origin or annotation):
        return _dataclass_reader(annotation)
    if origin is tuple:
        return _tuple_reader(typing.get_args(annotation), DEFAULT_ITEMS)
    if origin is frozenset:
        items = _tuple_reader((*typing.get_args(annotation), ...), DEFAULT_ITEMS)
        return lambda value, where: frozenset(items(value, where))
    if origin in (Union, types.UnionType):
        return _union_reader(annotation)
    if origin is Literal:
        return _literal_reader(typing.get_args(annotation))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping_reader(*typing.get_args(annotation))
    supertype = getattr(annotation, "__supertype__", None)
    return _reader(supertype) if supertype is not None else _scalar_reader(annotation)


def _scalar_reader(kind: type) -> Reader:
    if kind is str:
        return _ruled_reader(AtMost(DEFAULT_TEXT_BYTES), str)
    if kind is bytes:
        return _ruled_reader(AtMost(DEFAULT_BYTES), bytes)
    assert kind in (int, bool, float, type(None)), f"the codec has no reader for {kind}"

    def read(value: Any, where: str) -> Any:
        if kind is int and type(value) is bytes:
            return _read_wide(value, where)
        if type(value) is not kind:
            raise Malformed(where, f"is not {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise Malformed(where, "is no finite number")
        return value

    return read


def _annotated_reader(base: Any, *marks: Rule | AbsentMeans) -> Reader:
    rules = [mark for mark in marks if not isinstance(mark, AbsentMeans)]
    if not rules:
        return _reader(base)
    (rule,) = rules
    if typing.get_origin(base) is tuple:
        assert isinstance(rule, AtMost)
        return _tuple_reader(typing.get_args(base), rule.limit)
    return _ruled_reader(rule, base)


def _ruled_reader(rule: Rule, kind: type) -> Reader:
    """A reader by a rule of ``hansa.proto.units``. Integers over 64 bits travel as bytes: msgpack has none so large."""
    wide = isinstance(rule, Unsigned) and rule.bits > 64

    def read(value: Any, where: str) -> Any:
        if wide and type(value) is bytes:
            value = _read_wide(value, where)
        if type(value) is not kind:
            raise Malformed(where, f"is not {kind.__name__}")
        fault = rule.fault(value)
        if fault is not None:
            raise Malformed(where, fault)
        return value

    return read


def _dataclass_reader(annotation: Any) -> Reader:
    kind = typing.get_origin(annotation) or annotation
    bound = dict(zip(getattr(kind, "__parameters__", ()), typing.get_args(annotation), strict=False))
    hints = {name: bound.get(hint, hint) for name, hint in _hints(kind).items()}
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    # Nothing that goes over the wire has a default. A machine's state has: what an older version wrote down without a
    # field that came later is read with the field's default, so an upgrade finds its journal readable. A message's
    # field that came later says what its absence means, and is nevertheless written always.
    absent = {name: mark.value for name, hint in hints.items() for mark in _marks(hint)}
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in absent
    }

    def read(value: Any, where: str) -> Any:
        if type(value) is not dict or not required <= value.keys() <= readers.keys():
            raise Malformed(where, "not exactly the fields that belong here")
        try:
            return kind(**absent | {name: readers[name](item, f"{where}.{name}") for name, item in value.items()})
        except ProtocolError:
            raise
        except (ValueError, TypeError) as fault:
            raise Malformed(where, "the values do not go together") from fault

    return read


def _tuple_reader(arguments: tuple[Any, ...], most: int) -> Reader:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _reader(arguments[0])

        def read(value: Any, where: str) -> Any:
            if type(value) is not list:
                raise Malformed(where, "not a list")
            if len(value) > most:
                raise TooLarge(where, f"{len(value)} items, and at most {most} are allowed")
            return tuple(item(entry, where) for entry in value)

        return read
    readers = [_reader(argument) for argument in arguments]

    def read_fixed(value: Any, where: str) -> Any:
        if type(value) is not list or len(value) != len(readers):
            raise Malformed(where, f"not a list of {len(readers)}")
        return tuple(reader(entry, where) for reader, entry in zip(readers, value, strict=True))

    return read_fixed


def _mapping_reader(key: Any, item: Any) -> Reader:
    pairs = _tuple_reader((tuple[key, item], ...), 1 << 20)

    def read(value: Any, where: str) -> Any:
        found = dict(pairs(value, where))
        if len(found) != len(value):
            raise Malformed(where, "a key stands twice")
        return found

    return read


def _literal_reader(allowed: tuple[Any, ...]) -> Reader:
    def read(value: Any, where: str) -> Any:
        if type(value) not in (str, int) or value not in allowed:
            raise Malformed(where, "not one of the allowed words")
        return value

    return read


def _union_reader(annotation: Any) -> Reader:
    members = _members(annotation)
    optional = type(None) in members
    others = tuple(member for member in members if member is not type(None))
    if len(others) == 1:
        only = _reader(others[0])
        return lambda value, where: None if value is None and optional else only(value, where)
    named = {_bare_name(kind): _reader(kind) for kind in others}

    def read(value: Any, where: str) -> Any:
        if value is None and optional:
            return None
        if type(value) is not list or len(value) != 2 or type(value[0]) is not str or value[0] not in named:
            raise Malformed(where, "not [name, fields] of something that belongs here")
        return named[value[0]](value[1], f"{where}.{value[0]}")

    return read
