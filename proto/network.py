"""Which network this is: the one domain under which its documents are signed.

A node of another network has another genesis text, so no document of one is worth anything in the other.
"""

from typing import Final

from hansa.proto.documents import ledger_domain
from hansa.proto.keccak import keccak256

GENESIS: Final = keccak256(b"hansa network 1")
DOMAIN: Final = ledger_domain(GENESIS)
"""Signs everything between peers, and vouchers on the ledger backend."""


def currency_id(currency: str) -> bytes:
    """The 20 bytes that stand for a unit of account where a chain would have a token's address."""
    return keccak256(b"hansa currency " + currency.encode())[-20:]
