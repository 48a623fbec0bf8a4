"""A signer outside: a program or device that holds the key and is asked over JSON-RPC to sign what it is shown.

It speaks what browsers' wallets speak: ``eth_accounts``, ``personal_sign`` for texts, ``eth_signTypedData_v4`` for
typed data, ``eth_signTransaction`` for transactions. Whatever it answers is recovered and compared before anybody gets
to see it (transactions in ``hansa.node.chain.outside_account``): a signer may be the wrong one, be switched to another
account, or sign something else than it was asked for.
"""

import json
from typing import Any, Final

from hansa.node.chain.json_rpc import SOCKET_SCHEME, RpcAway, RpcError, RpcFault, RpcNode, data, rows, table
from hansa.node.chain.wallet import ToSign
from hansa.node.faults import ConfigError, OperatorError
from hansa.proto.errors import ProtocolError
from hansa.proto.signing import SIGNATURE_BYTES, V_OFFSET, checksum_address, parse_address, recover

PATIENCE_S: Final = 180.0
"""A person may have to look at it and to press a button."""
SCHEMES: Final = ("http://", "https://", SOCKET_SCHEME)
MOST_ACCOUNTS: Final = 256
NO_SUCH_METHOD: Final = (-32601, -32004, 4200)


class ExternalSigner:
    """One account of a signer."""

    def __init__(self, url: str, account: bytes | None, *, patience_s: float = PATIENCE_S) -> None:
        """Nothing is dialled yet. Without an account the signer's only one is meant.

        Raises:
            ConfigError: that is no address of a signer.
        """
        if not url.startswith(SCHEMES):
            raise ConfigError("that is no address of a signer", "http://127.0.0.1:8550, or unix:/path/of/its.ipc")
        self._node = RpcNode(url, timeout_s=patience_s)
        self._account = account

    async def close(self) -> None:
        """Hang up."""
        await self._node.close()

    async def accounts(self) -> list[bytes]:
        """The accounts that it lets be seen.

        Raises:
            OperatorError: it cannot be reached, refuses, or answers nonsense.
        """
        try:
            answer = rows(await self._node.order("eth_accounts"), "eth_accounts")
            return [parse_address(each) for each in answer[:MOST_ACCOUNTS]]
        except (RpcFault, ProtocolError) as fault:
            raise _translated(fault) from None

    async def account(self) -> bytes:
        """Who signs.

        Raises:
            OperatorError: it has none or several, and none was named; or as ``accounts``.
        """
        if self._account is None:
            found = await self.accounts()
            if len(found) != 1:
                what = f"the signer shows {len(found)} accounts"
                raise OperatorError(what, "unlock one there, or name one with --address 0x...")
            self._account = found[0]
        return self._account

    async def sign(self, to_sign: ToSign) -> bytes:
        """Have it signed. The answer is by the account and over exactly this, in the form that a contract accepts.

        Raises:
            OperatorError: it cannot be reached, refuses, or signed something else.
        """
        account = await self.account()
        address = checksum_address(account)
        if to_sign.typed is None:
            question = ("personal_sign", "0x" + to_sign.text.hex(), address)
        else:
            question = ("eth_signTypedData_v4", address, json.dumps(to_sign.typed))
        try:
            answer = data(await self._node.order(*question), "the signature", SIGNATURE_BYTES)
            return _checked(to_sign, account, answer)
        except (RpcFault, ProtocolError) as fault:
            raise _translated(fault) from None

    async def sign_transaction(self, wanted: dict[str, Any]) -> bytes:
        """The signer's answer to a transaction that it is to sign and not to send: bytes, of which nothing is believed.

        Raises:
            OperatorError: it cannot be reached, cannot do that, refuses, or answers nonsense.
        """
        try:
            answer = await self._node.order("eth_signTransaction", wanted)
            # Some answer with the transaction in its parts, too.
            raw = table(answer, "the transaction", "raw")["raw"] if isinstance(answer, dict) else answer
            return data(raw, "the transaction")
        except RpcError as fault:
            if fault.code in NO_SUCH_METHOD:
                hint = "it must sign without sending (eth_signTransaction), so that nothing is ever paid twice"
                raise OperatorError(f"the signer at {fault.where} cannot sign transactions", hint) from None
            raise _translated(fault) from None
        except (RpcFault, ProtocolError) as fault:
            raise _translated(fault) from None


def _checked(to_sign: ToSign, account: bytes, answer: bytes) -> bytes:
    # Devices say 0 and 1 where contracts want 27 and 28. Anything else is refused, as is the high s.
    v = answer[64] + V_OFFSET if answer[64] < 2 else answer[64]
    signature = answer[:64] + bytes((v,))
    if recover(to_sign.digest, signature) != account:
        what = "the signer's answer is not the account's signature over what it was shown"
        raise OperatorError(what, "it may be switched to another account or chain; nothing was signed for you")
    return signature


def _translated(fault: RpcFault | ProtocolError) -> OperatorError:
    if isinstance(fault, RpcAway):
        return OperatorError(f"the signer at {fault}", "is it running, and did somebody confirm there in time?")
    if isinstance(fault, RpcError):
        return OperatorError(f"the signer at {fault.where} refused: {fault.message}", "look at it: it may say why")
    return OperatorError(f"the signer's answer is none: {fault}", "is that really a signer's address?")
