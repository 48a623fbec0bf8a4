"""An account whose key is somewhere else: a signer outside signs its permits and transactions, and is believed nothing.

A permit is typed data, signed as ``eth_signTypedData_v4`` shows it. A transaction goes out as ``eth_signTransaction``:
the signer signs and does not send, so that it can be written down before it is sent, and goes out with this nonce and
no other. What comes back must be exactly what was asked for, signed by the account: a signer that changes a fee, a
nonce or a receiver, or a person who does so there, gets nothing sent.
"""

from collections.abc import Callable
from typing import Any, Final

from hansa.node.chain.evm_escrow import Permit
from hansa.node.chain.external_signer import ExternalSigner
from hansa.node.chain.json_rpc import hex_data, hex_quantity
from hansa.node.chain.wallet import ToSign
from hansa.node.faults import OperatorError
from hansa.proto.errors import ProtocolError
from hansa.proto.keccak import keccak256
from hansa.proto.signing import V_OFFSET, parse_address, recover
from hansa.proto.typed_data import Domain, digest
from hansa.proto.typed_payload import typed_payload
from hansa.proto.units import format_amount

DYNAMIC_FEE: Final = b"\x02"
"""What an EIP-1559 transaction begins with (EIP-2718)."""


class OutsideAccount:
    """One account of a signer outside: a ``TransactionSigner`` and a ``PermitSigner``."""

    def __init__(self, signer: ExternalSigner, address: bytes, *, say: Callable[[str], None]) -> None:
        """Nothing is asked yet. ``say`` is told what the signer is about to be shown."""
        self._signer = signer
        self._address = address
        self._say = say

    @property
    def address(self) -> bytes:
        """Whose signatures these are."""
        return self._address

    async def close(self) -> None:
        """Hang up."""
        await self._signer.close()

    async def sign_permit(self, domain: Domain, permit: Permit) -> bytes:
        """See ``PermitSigner``.

        Raises:
            OperatorError: the signer cannot be reached, refuses, or signed something else.
        """
        what = f"a permit: the escrow may take {format_amount(permit.value)} {domain.name}, once, within the hour"
        self._say(f"asking the signer to sign {what}")
        typed = typed_payload(domain, permit)
        return await self._signer.sign(ToSign(digest=digest(domain, permit), kind="typed data", what=what, typed=typed))

    async def sign_transaction(self, fields: dict[str, Any]) -> bytes:
        """See ``TransactionSigner``.

        Raises:
            OperatorError: the signer cannot be reached, refuses, or signed something else.
        """
        most_fee = fields["gas"] * fields["maxFeePerGas"]
        self._say(f"asking the signer to sign transaction {fields['nonce']}, with fees of at most {most_fee} wei")
        return checked_transaction(
            fields, self._address, await self._signer.sign_transaction(_as_rpc(fields, self._address))
        )


def _as_rpc(fields: dict[str, Any], sender: bytes) -> dict[str, Any]:
    """A transaction as JSON-RPC has it."""
    return {
        "type": "0x2",
        "from": hex_data(sender),
        "to": fields["to"],
        "chainId": hex_quantity(fields["chainId"]),
        "nonce": hex_quantity(fields["nonce"]),
        "value": hex_quantity(fields["value"]),
        "gas": hex_quantity(fields["gas"]),
        "maxFeePerGas": hex_quantity(fields["maxFeePerGas"]),
        "maxPriorityFeePerGas": hex_quantity(fields["maxPriorityFeePerGas"]),
        "data": hex_data(fields["data"]),
        "accessList": [],
    }


def checked_transaction(fields: dict[str, Any], account: bytes, raw: bytes) -> bytes:
    """A signed transaction, if it is exactly the one with these fields, signed by the account.

    Raises:
        OperatorError: it is another one, or by somebody else.
    """
    import rlp  # noqa: PLC0415  # only those who have a signer outside need it

    wanted = _items(fields)
    unsigned = DYNAMIC_FEE + rlp.encode(wanted)
    try:
        if raw[:1] != DYNAMIC_FEE:
            raise _another()
        found = rlp.decode(raw[1:])
        if found[:-3] != wanted:
            raise _another()
        parity, r, s = found[-3:]
        # A number with zeros before it is one that no chain takes, and its nonce would be stuck.
        if parity not in (b"", b"\x01") or not all(isinstance(word, bytes) and word[:1] != b"\0" for word in (r, s)):
            raise _another()
        v = bytes((V_OFFSET + len(parity),))
        if recover(keccak256(unsigned), r.rjust(32, b"\0") + s.rjust(32, b"\0") + v) != account:
            raise _another()
    except (rlp.exceptions.RLPException, ProtocolError, RecursionError):
        raise _another() from None
    return raw


def _items(fields: dict[str, Any]) -> list[Any]:
    """What an EIP-1559 transaction says, in its order."""
    assert not fields["accessList"], "no transaction of ours has an access list"
    names = ("chainId", "nonce", "maxPriorityFeePerGas", "maxFeePerGas", "gas")
    numbers = [_number(fields[name]) for name in names]
    return [*numbers, parse_address(fields["to"]), _number(fields["value"]), fields["data"], []]


def _number(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _another() -> OperatorError:
    what = "the signer's answer is not the account's signature under the transaction that it was shown"
    return OperatorError(what, "change neither fees nor nonce there, and look which account it is switched to")
