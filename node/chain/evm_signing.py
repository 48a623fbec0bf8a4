"""Who signs for an account on a chain: its key in this process, through eth-account, or elsewhere a signer outside."""

import sys
from typing import Any, Protocol

from hansa.node.chain.evm_escrow import Permit
from hansa.proto.keccak import keccak256
from hansa.proto.signing import SigningKey
from hansa.proto.typed_data import Domain, digest


class TransactionSigner(Protocol):
    """Signs for one account."""

    @property
    def address(self) -> bytes:
        """Whose transactions these are."""
        ...

    async def sign_transaction(self, fields: dict[str, Any]) -> bytes:
        """The raw bytes of an EIP-1559 transaction with these fields, signed."""
        ...


class PermitSigner(Protocol):
    """Signs permits for one account."""

    @property
    def address(self) -> bytes:
        """Whose tokens these are."""
        ...

    async def sign_permit(self, domain: Domain, permit: Permit) -> bytes:
        """The account's signature over a permit, by which its spender may take what it says."""
        ...


class AccountSigner:
    """The account's key, in this process."""

    def __init__(self, key: SigningKey) -> None:
        """Sign with this key."""
        self._key = key

    @property
    def address(self) -> bytes:
        """See ``TransactionSigner``."""
        return self._key.address

    async def sign_permit(self, domain: Domain, permit: Permit) -> bytes:
        """See ``PermitSigner``."""
        return self._key.sign_digest(digest(domain, permit))

    async def sign_transaction(self, fields: dict[str, Any]) -> bytes:
        """See ``TransactionSigner``."""
        return bytes(_eth_account().sign_transaction(fields, self._key.secret()).raw_transaction)


def _eth_account() -> Any:
    """eth-account, imported late: it takes half a second, which only nodes that settle on a chain need to spend.

    Below it py_ecc raises the recursion limit to 100,000, where nested JSON would overflow the stack: put it back.
    """
    limit = sys.getrecursionlimit()
    try:
        from eth_account import Account  # noqa: PLC0415
    finally:
        sys.setrecursionlimit(limit)
    return Account


def transaction_hash(raw: bytes) -> bytes:
    """A signed transaction's name."""
    return keccak256(raw)
