"""Hypothesis strategies that draw any valid document of a class, read off its annotations."""

from typing import Any

from hypothesis import strategies as st

from hansa.proto import documents
from hansa.proto.typed_data import element_of, is_document, members_of, unwrap
from hansa.proto.units import AtMost, Exactly, TwosComplement, Unsigned

SETTLEMENT_DOCUMENTS = (
    documents.ChannelConfig,
    documents.Voucher,
    documents.CooperativeClose,
    documents.MeterLine,
    documents.Receipt,
    documents.NodeBinding,
    documents.TreeHead,
    documents.CreditLine,
    documents.Payment,
    documents.Netting,
    documents.ChannelEnd,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def integers_of(rule: Unsigned | TwosComplement) -> st.SearchStrategy[int]:
    """Integers in the rule's range, its edges often."""
    if isinstance(rule, Unsigned):
        low, high = 0, (1 << rule.bits) - 1
    else:
        low, high = -(1 << rule.bits - 1), (1 << rule.bits - 1) - 1
    return st.one_of(st.integers(low, high), st.sampled_from([low, low + 1, high - 1, high]))


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any valid value of an annotated type."""
    bare, rules = unwrap(hint)
    element = element_of(bare)
    if element is not None:
        return st.lists(values_of(element), max_size=4).map(tuple)
    if is_document(bare):
        return documents_of(bare)
    if bare is bool:
        return st.booleans()
    if bare is str:
        return TEXT
    if bare is int:
        return integers_of(rules[0])
    if rules and isinstance(rules[0], Exactly):
        return st.binary(min_size=rules[0].size_bytes, max_size=rules[0].size_bytes)
    limit = rules[0].limit if rules and isinstance(rules[0], AtMost) else 100
    return st.binary(max_size=min(limit, 100))


def documents_of(cls: type) -> st.SearchStrategy[Any]:
    """Any valid document of a class."""
    return st.fixed_dictionaries({m.attribute: values_of(m.hint) for m in members_of(cls)}).map(lambda kw: cls(**kw))


def any_document() -> st.SearchStrategy[Any]:
    """Any valid document of settlement."""
    return st.sampled_from(SETTLEMENT_DOCUMENTS).flatmap(documents_of)
