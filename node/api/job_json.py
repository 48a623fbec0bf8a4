"""A ``JobSpec`` as JSON, between the command line and the daemon on one machine.

Field names are the dataclass's own. Every value is held against the rule of its field's type, as on the wire.
"""

import re
from dataclasses import fields
from typing import Any, get_type_hints

from hansa.proto.errors import Malformed
from hansa.proto.typed_data import check_value, element_of, is_document, unwrap
from hansa.proto.typed_json import read_decimal, read_exact_keys
from hansa.scheduler.job_spec import JobSpec

_HEX = re.compile(r"0x(?:[0-9a-f]{2}){0,64}", re.ASCII)
LARGEST_JSON_INTEGER = (1 << 53) - 1
"""Larger ones are decimal strings: many JSON readers would round them."""


def spec_to_json(spec: JobSpec) -> dict[str, Any]:
    """The job's description as the dicts, lists, texts and integers that JSON is made of."""
    plain: dict[str, Any] = _plain(spec)
    return plain


def spec_from_json(raw: object) -> JobSpec:
    """Read a job's description back.

    Raises:
        Malformed: it has not exactly the fields of a ``JobSpec``, or a value is out of its range.
    """
    spec = _read(JobSpec, raw, "spec")
    assert isinstance(spec, JobSpec)
    return spec


def _plain(value: Any) -> Any:
    if is_document(type(value)):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if type(value) is bytes:
        return "0x" + value.hex()
    if type(value) is int and value > LARGEST_JSON_INTEGER:
        return str(value)
    return value


def _read(hint: Any, raw: object, where: str) -> Any:
    bare, rules = unwrap(hint)
    element = element_of(bare)
    if is_document(bare):
        names = tuple(field.name for field in fields(bare))
        table = read_exact_keys(raw, names, where)
        hints = get_type_hints(bare, include_extras=True)
        return bare(**{name: _read(hints[name], table[name], f"{where}.{name}") for name in names})
    if element is not None:
        if type(raw) is not list:
            raise Malformed(where, "is not a JSON array")
        return tuple(_read(element, item, f"{where}[{index}]") for index, item in enumerate(raw))
    if bare is int and type(raw) is str:
        raw = read_decimal(raw, where)
    if bare is bytes:
        if type(raw) is not str or not _HEX.fullmatch(raw):
            raise Malformed(where, "is not 0x and pairs of hex digits in lower case")
        raw = bytes.fromhex(raw[2:])
    if bare is bool and type(raw) is not bool:
        raise Malformed(where, "is neither true nor false")
    check_value(rules, raw, where)
    return raw
