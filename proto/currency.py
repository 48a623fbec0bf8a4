"""What a currency's name says: on which books its vouchers count, and what stands for it there.

Two kinds of names, and nothing else tells the two backends of settlement apart:

    ``USD``                                                   a unit of account on the ledger backend: an IOU
    ``eip155:8453/escrow:0x…40 hex…/erc20:0x…40 hex…``        a token in one escrow contract on one chain

The second follows CAIP-2 and CAIP-19 in naming chain and token, in lower case, and puts the escrow between them. As the
name stands in the signed tender, neither side can later mean another contract than the other.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from hansa.proto.documents import escrow_domain
from hansa.proto.errors import Malformed
from hansa.proto.keccak import keccak256
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import Domain
from hansa.proto.units import Address, Line, Uint64

CHAIN_PREFIX = "eip155:"
_ON_CHAIN = re.compile(r"eip155:([1-9][0-9]{0,17})/escrow:0x([0-9a-f]{40})/erc20:0x([0-9a-f]{40})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Currency:
    """A currency's name, understood.

    Attributes:
        name: as it stands in documents.
        domain: where channels, vouchers and closes in it are signed for.
        token: the token's contract; on the ledger 20 bytes that stand for the unit of account.
        chain_id: the chain; 0 on the ledger.
        escrow: the escrow contract; 20 zero bytes on the ledger.
    """

    name: Line
    domain: Domain
    token: Address
    chain_id: Uint64
    escrow: Address

    @property
    def is_on_chain(self) -> bool:
        """Whether the escrow contract holds the money; an IOU otherwise."""
        return self.chain_id != 0


def currency_id(name: str) -> bytes:
    """The 20 bytes that stand for a unit of account where a chain would have a token's address."""
    return keccak256(b"hansa currency " + name.encode())[-20:]


def unit_of(name: str) -> bytes:
    """The 32 bytes that stand for a unit of account in credit lines, payments and nettings."""
    return currency_id(name).rjust(32, b"\0")


def escrow_currency(chain_id: int, escrow: bytes, token: bytes) -> str:
    """The name of a token in an escrow contract on a chain."""
    return f"{CHAIN_PREFIX}{chain_id}/escrow:0x{escrow.hex()}/erc20:0x{token.hex()}"


@lru_cache(maxsize=256)
def currency_of(name: str) -> Currency:
    """Understand a name. It may be a peer's.

    Raises:
        Malformed: it begins like a token on a chain and does not go on like one.
    """
    if not name.startswith(CHAIN_PREFIX):
        return Currency(name=name, domain=DOMAIN, token=currency_id(name), chain_id=0, escrow=bytes(20))
    found = _ON_CHAIN.fullmatch(name)
    if found is None:
        raise Malformed("currency", "is not eip155:CHAIN/escrow:0x…/erc20:0x… in lower case")
    chain_id, escrow, token = int(found[1]), bytes.fromhex(found[2]), bytes.fromhex(found[3])
    domain = escrow_domain(chain_id, escrow)
    return Currency(name=name, domain=domain, token=token, chain_id=chain_id, escrow=escrow)
