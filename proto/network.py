"""Which network this is: the one domain under which its documents are signed.

A node of another network has another genesis text, so no document of one is worth anything in the other.
"""

from typing import Final

from hansa.proto.documents import ledger_domain
from hansa.proto.keccak import keccak256

GENESIS: Final = keccak256(b"hansa network 1")
DOMAIN: Final = ledger_domain(GENESIS)
"""Signs everything between peers, and vouchers on the ledger backend."""
