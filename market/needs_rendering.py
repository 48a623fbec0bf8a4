"""What a job needs and a provider accepts, as text: what ``hansa.market.requirements`` reads as the same again."""

import re
from dataclasses import replace
from typing import Final

from hansa.market.requirements import TIMES, Needs, kind_of, needs_of
from hansa.market.shares import SHARE
from hansa.market.value_forms import duration_text, number_text, size_text
from hansa.market.vocabulary import ANY, VOCABULARY
from hansa.proto.gpu_models import parse
from hansa.proto.market_documents import Clause, DeviceChoice, Requirements
from hansa.proto.units import e18_to_price_per_hour

_BARE = re.compile(r"(?:(?!\.\.)[A-Za-z0-9_./:@%$*+\-])+", re.ASCII)
_RESERVED: Final = frozenset(("and", "or", "in", "not", "notin", ANY))


def render(needs: Needs | Requirements) -> str:
    """A text that ``parse_needs`` reads as the same needs."""
    needs = needs_of(needs) if isinstance(needs, Requirements) else needs
    terms = [" or ".join(render_choice(choice) for choice in needs.choices)] if needs.choices else []
    terms += [f"devices = {needs.devices}"] if needs.devices is not None else []
    # A choice of GPUs says what kind of devices they are.
    terms += [f"kind = {needs.kind}"] if needs.kind and needs.kind != kind_of(needs.choices) else []
    for name, value in (
        ("vram", None if needs.device_memory_bytes is None else size_text(needs.device_memory_bytes)),
        ("cores", None if needs.cores_milli is None else number_text(needs.cores_milli)),
        ("ram", None if needs.memory_bytes is None else size_text(needs.memory_bytes)),
        ("disk", None if needs.scratch_bytes is None else size_text(needs.scratch_bytes)),
    ):
        terms += [f"{name} >= {value}"] if value is not None else []
    terms += [f"tier = {needs.tier}"] if needs.tier else []
    terms += [f"features = {_quoted(feature)}" for feature in needs.features]
    terms += [said_as_wish(clause) for clause in needs.clauses]
    if needs.price_e18_per_device_ms is not None:
        terms.append(f"price <= {VOCABULARY['price'].read(e18_to_price_per_hour(needs.price_e18_per_device_ms))}")
    terms += [f"deadline = {duration_text(needs.deadline_ms)}"] if needs.deadline_ms is not None else []
    terms += [f"lease = {needs.lease}"] if needs.lease else []
    return " and ".join(terms)


def render_choice(choice: DeviceChoice) -> str:
    """One set of devices, such as 8 times an H100."""
    known = parse(choice.model) is not None
    return (
        f"{choice.devices}{TIMES}{choice.model}"
        if known and _BARE.fullmatch(choice.model)
        else (f'"{choice.devices}{TIMES}{choice.model}"')
    )


def read_choice(text: str) -> DeviceChoice | None:
    """What ``render_choice`` wrote, whatever the model's name is; ``None`` for anything else."""
    count, times, model = text.removeprefix('"').removesuffix('"').partition(TIMES)
    if not times or not count.isascii() or not count.isdigit() or len(count) > 4:
        return None
    return DeviceChoice(devices=int(count), model=model)


def render_clause(clause: Clause) -> str:
    """One clause as a term."""
    values = [_quoted(value) for value in clause.values]
    joined = ", ".join(values)
    return f"{clause.name} {clause.operator} " + (f"({joined})" if clause.operator in ("in", "not in") else joined)


def said_as_wish(clause: Clause) -> str:
    """The same as a job says it: a part of a device is asked for as just that."""
    return render_clause(replace(clause, operator="=") if (clause.name, clause.operator) == (SHARE, "<=") else clause)


def _quoted(value: str) -> str:
    bare = all(_BARE.fullmatch(part) and part.casefold() not in _RESERVED for part in value.split(" "))
    return value if bare else f'"{value}"'
