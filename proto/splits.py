"""Splits: which parts of what a channel pays go to others than the payee, such as a model's or a data set's owner.

A split is a share of the running total in basis points (hundredths of a percent). What each is due of a total is
``floor(total * bps / 10_000)``, less what it had of the total before; so nobody's part depends on how a total is cut
into settlements, and nobody can skim by many small ones. As long as the channel lives the payee's part is rounded down
like the others: were it what the floors leave, it would shrink whenever one more unit makes several splits whole at
once, and had been paid already. The few units that all the floors leave wait in the channel, and are the payee's at its
end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hansa.proto.errors import Malformed
from hansa.proto.keccak import keccak256
from hansa.proto.units import Address, Amount, Uint32

WHOLE_BPS: Final = 10_000
MOST_SPLITS: Final = 8
NO_SPLITS: Final = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One share: who gets it, and how many ten-thousandths of the total."""

    account: Address
    bps: Uint32


def percent(bps: int) -> str:
    """Ten-thousandths for people: 250 is ``"2.5 %"``."""
    whole, rest = divmod(bps, 100)
    return f"{whole}.{rest:02}".rstrip("0").rstrip(".") + " %"


def check_splits(splits: Sequence[Split]) -> None:
    """Hold splits against their rules: at most 8, accounts rising and not zero, shares of 1 to 10,000 in all.

    Raises:
        Malformed: they break one.
    """
    if len(splits) > MOST_SPLITS:
        raise Malformed("splits", f"are more than {MOST_SPLITS}")
    accounts = [split.account for split in splits]
    if accounts != sorted(set(accounts)) or (accounts and not any(accounts[0])):
        raise Malformed("splits", "are not in the order of their accounts, each once and none of them zero")
    if any(split.bps < 1 for split in splits) or sum(split.bps for split in splits) > WHOLE_BPS:
        raise Malformed("splits", f"are not shares of 1 to {WHOLE_BPS} basis points in all")


def splits_hash(splits: Sequence[Split]) -> bytes:
    """What a channel's config names: a chain of keccak256 over the splits, each 64 bytes; 32 zero bytes for none.

    ``h = keccak256(h ‖ account as a word ‖ bps as a word)``, from zero on: short for a contract to work out.
    """
    chain = NO_SPLITS
    for split in splits:
        chain = keccak256(chain + split.account.rjust(32, b"\0") + split.bps.to_bytes(32, "big"))
    return chain


def shares_of(
    total: Amount, before: Amount, splits: Sequence[Split], *, last: bool
) -> tuple[tuple[Amount, ...], Amount]:
    """What is paid out when the settled total rises: each split's part, then the payee's. None is ever negative.

    Args:
        total: the new settled total.
        before: the settled total until now.
        splits: as ``check_splits`` wants them.
        last: whether the channel ends with it. Then all that was ever paid out sums to ``total``; before that it is
            less by fewer units than there are parts.
    """
    parts = tuple(total * split.bps // WHOLE_BPS - before * split.bps // WHOLE_BPS for split in splits)
    payee_bps = WHOLE_BPS - sum(split.bps for split in splits)
    had = before * payee_bps // WHOLE_BPS
    if not last:
        return parts, total * payee_bps // WHOLE_BPS - had
    return parts, total - sum(total * split.bps // WHOLE_BPS for split in splits) - had
