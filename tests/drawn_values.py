"""Hypothesis strategies that draw any value the codec carries, read off the annotations as the codec reads them."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Union

from hypothesis import strategies as st

from hansa.proto.units import AbsentMeans, AtMost, Exactly, TwosComplement, Unsigned

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    bytes: st.binary(max_size=12),
    bool: st.booleans(),
    int: st.integers() | st.sampled_from([(1 << 64) - 1, 1 << 64, -(1 << 63), -(1 << 63) - 1, 1 << 127]),
    float: st.floats(allow_nan=False, allow_infinity=False),
    type(None): st.none(),
}


def values(hint: Any, bound: Mapping[Any, Any] | None = None) -> st.SearchStrategy[Any]:
    """Any value of an annotated type. ``bound``: what stands for type variables."""
    hint = (bound or {}).get(hint, hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _ruled(arguments[0], arguments[1], bound)
    if hint in SCALARS:
        return SCALARS[hint]
    if origin in (Union, types.UnionType):
        return st.one_of([values(each, bound) for each in arguments])
    if dataclasses.is_dataclass(origin or hint):
        return dataclasses_of(hint)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return st.lists(values(arguments[0], bound), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(each, bound) for each in arguments))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is frozenset:
        return st.frozensets(values(arguments[0], bound), max_size=2)
    assert issubclass(origin, Mapping), f"nothing draws {hint}"
    return st.dictionaries(values(arguments[0], bound), values(arguments[1], bound), max_size=2)


def _ruled(base: Any, rule: Any, bound: Mapping[Any, Any] | None) -> st.SearchStrategy[Any]:
    match rule:
        case Unsigned(bits=bits):
            return st.integers(0, (1 << bits) - 1) | st.sampled_from([0, (1 << bits) - 1])
        case TwosComplement(bits=bits):
            return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
        case Exactly(size_bytes=size_bytes):
            return st.binary(min_size=size_bytes, max_size=size_bytes)
        case AtMost() | AbsentMeans():
            return values(base, bound)
    raise AssertionError(f"nothing draws by {rule}")


def dataclasses_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a dataclass, a generic one too."""
    plain = typing.get_origin(kind) or kind
    bound = dict(zip(getattr(plain, "__parameters__", ()), typing.get_args(kind), strict=True))
    hints = typing.get_type_hints(plain, include_extras=True)
    names = [field.name for field in dataclasses.fields(plain) if field.init]
    fields = {name: st.deferred(lambda name=name: values(hints[name], bound)) for name in names}
    return st.fixed_dictionaries(fields).map(lambda found: _made(plain, found)).filter(lambda made: made is not None)


def _made(kind: Any, found: dict[str, Any]) -> Any:
    """The value, or None where its own rules forbid it (an entry of the books must sum to zero)."""
    try:
        return kind(**found)
    except AssertionError:
        return None
