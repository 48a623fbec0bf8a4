"""Parts of a device: how a job asks for one, what a bid says that it gives, and how time on it is counted.

A job asks with one clause, ``share <= 0.5``: whoever lends parts as small as that gives it exactly so much. A provider
that does not know the word meets no such clause, and declines. Prices are of whole devices everywhere; what makes a
part cheaper is that its time is counted as that part of a device's. So one second of half a device is half a second of
device time: in receipts, budgets, reservations and statements alike.
"""

from collections.abc import Iterable
from typing import Final

from hansa.market.value_forms import number_text
from hansa.market.vocabulary import VOCABULARY
from hansa.proto.market_documents import Bid, Clause, Fact, Requirements
from hansa.proto.units import PriceE18, amount_for

SHARE: Final = "share"
SPARE: Final = "spare"
WHOLE_MILLI: Final = 1_000
"""All of a device, in thousandths."""
_PPM_OF_MILLI: Final = 1_000


def share_asked(needs: Requirements) -> int | None:
    """The part of one device that a shard wants, in thousandths: all of it where nothing is said.

    ``None`` where what is said means no part of one device. Strangers send anything.
    """
    said = [clause for clause in needs.clauses if clause.name.casefold() == SHARE]
    if not said:
        return WHOLE_MILLI
    alone = needs.devices == 1 and all(choice.devices == 1 for choice in needs.choices)
    if len(said) > 1 or not alone or said[0].operator != "<=" or len(said[0].values) != 1:
        return None
    milli = _milli(said[0].values[0])
    return milli if milli is not None and 0 < milli < WHOLE_MILLI else None


def share_given(bid: Bid) -> int:
    """The part of each of its devices that a bid gives, in thousandths; 0 where what it says of it means none."""
    return share_in(bid.facts)


def share_in(facts: Iterable[Fact]) -> int:
    """The same of a bid's facts."""
    said = [fact.value for fact in facts if fact.name == SHARE]
    if not said:
        return WHOLE_MILLI
    milli = _milli(said[0]) if len(said) == 1 else None
    return milli if milli is not None and 0 < milli <= WHOLE_MILLI else 0


def share_clause(milli: int) -> Clause:
    """The condition that asks for a part of a device."""
    return Clause(name=SHARE, operator="<=", values=(number_text(milli),))


def width_milli(bid: Bid) -> int:
    """How much a bid gives: all its devices together, in thousandths of one."""
    return len(bid.devices) * share_given(bid)


def device_ms(elapsed_ms: int, width: int) -> int:
    """Device time of so much time on so much, in thousandths of a device; rounded down."""
    return elapsed_ms * width // WHOLE_MILLI


def cost(elapsed_ms: int, width: int, price_e18: PriceE18) -> int:
    """What that costs at the price of a whole device; rounded down."""
    return amount_for(device_ms(elapsed_ms, width), price_e18)


def most_ahead(bid: Bid, ahead_ms: int) -> int:
    """What a bid may want paid ahead of a buyer that pays for so much device time ahead: never more than all of it."""
    return min(bid.max_total, cost(ahead_ms, width_milli(bid), bid.price_e18_per_device_ms))


def least_milli(facts: Iterable[Fact]) -> int | None:
    """The smallest part of a device that is lent, by the device's own facts; ``None`` where it is lent whole only."""
    said = next((fact.value for fact in facts if fact.name == SHARE), None)
    return None if said is None else _milli(said)


def spare_milli(facts: Iterable[Fact]) -> int:
    """How much of devices that are lent in parts is free, by an advert's facts, in thousandths of a device."""
    said = next((fact.value for fact in facts if fact.name == SPARE), "")
    word = VOCABULARY[SPARE]
    try:
        return int(word.key(word.read(said)))
    except ValueError:
        return 0


def _milli(text: str) -> int | None:
    """A share in thousandths; ``None`` for what is none, and for one that is finer than that."""
    word = VOCABULARY[SHARE]
    try:
        ppm = int(word.key(word.read(text)))
    except ValueError:
        return None
    return None if ppm % _PPM_OF_MILLI else ppm // _PPM_OF_MILLI
