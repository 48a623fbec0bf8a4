"""A signer outside gets a transaction to sign: what comes back is exactly that, by that account, or nothing is sent."""

import json
import sys
from typing import Any

import pytest
import rlp
import trio
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from kit.rpc_stand_in import error, result, rpc_stand_in
from kit.signer_process import outside_signer

from hansa.node.chain.evm_escrow import Permit
from hansa.node.chain.evm_signing import AccountSigner
from hansa.node.chain.external_signer import ExternalSigner
from hansa.node.chain.outside_account import OutsideAccount, checked_transaction
from hansa.node.faults import OperatorError
from hansa.proto.signing import CURVE_ORDER, SigningKey, checksum_address, recover
from hansa.proto.typed_data import Domain, digest

KEY, OTHER = SigningKey(b"\x42" * 32), SigningKey(b"\x43" * 32)
FIELDS: dict[str, Any] = {
    "type": 2,
    "chainId": 31_337,
    "nonce": 7,
    "to": checksum_address(b"\x11" * 20),
    "value": 0,
    "data": b"\x01\x02" * 40,
    "gas": 200_000,
    "maxFeePerGas": 5 * 10**9,
    "maxPriorityFeePerGas": 10**9,
    "accessList": [],
}


def signed(key: SigningKey = KEY, **changes: Any) -> bytes:
    return bytes(Account.sign_transaction({**FIELDS, **changes}, key.secret()).raw_transaction)


def asked(url: str, of: str = "transaction") -> bytes:
    async def ask() -> bytes:
        outside = OutsideAccount(ExternalSigner(url, KEY.address, patience_s=10), KEY.address, say=lambda _words: None)
        try:
            if of == "transaction":
                return await outside.sign_transaction(FIELDS)
            return await outside.sign_permit(DOMAIN, PERMIT)
        finally:
            await outside.close()

    return trio.run(ask)


DOMAIN = Domain(name="Test \u20ac", version="1", chain_id=31_337, verifying_contract=b"\x22" * 20)
PERMIT = Permit(owner=KEY.address, spender=b"\x33" * 20, value=5, nonce=0, deadline=2**40)


def test_another_process_signs_what_the_accounts_own_key_would() -> None:
    with outside_signer(KEY.secret()) as url:
        assert asked(url) == signed() == trio.run(AccountSigner(KEY).sign_transaction, FIELDS)
        permitted = asked(url, "permit")
        assert permitted == trio.run(AccountSigner(KEY).sign_permit, DOMAIN, PERMIT)
        assert recover(digest(DOMAIN, PERMIT), permitted) == KEY.address


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": 8},
        {"gas": 200_001},
        {"maxFeePerGas": 5 * 10**9 + 1},
        {"maxPriorityFeePerGas": 10**9 - 1},
        {"to": checksum_address(b"\x12" * 20)},
        {"value": 1},
        {"data": b"\x01\x03" * 40},
        {"chainId": 1},
        {"accessList": [{"address": checksum_address(b"\x11" * 20), "storageKeys": []}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_transaction_that_was_changed_anywhere_is_not_sent(changes: dict[str, Any]) -> None:
    with pytest.raises(OperatorError, match="not the account's signature"):
        checked_transaction(FIELDS, KEY.address, signed(**changes))


def lies() -> dict[str, bytes]:
    good = signed()
    items: list[Any] = rlp.decode(good[1:])
    y, r, s = items[-3:]
    high = (CURVE_ORDER - int.from_bytes(s, "big")).to_bytes(32, "big")
    flipped = b"" if y else b"\x01"

    def of(*end: Any) -> bytes:
        return b"\x02" + rlp.encode([*items[:-3], *end])

    return {
        "another account": signed(OTHER),
        "the high twin": of(flipped, r, high),
        "a flipped v": of(flipped, r, s),
        "v of 27": of(bytes((27 + len(y),)), r, s),
        "v of 0 spelled out": of(b"\x00", r, s),
        "r longer": of(y, b"\x00" + r, s),
        "no s": of(y, r),
        "a list for r": of(y, [r], s),
        "more after it": good + b"\x00",
        "less": good[:-1],
        "another type": b"\x01" + good[1:],
        "none": b"",
        "deep nesting": b"\x02" + b"\xc1" * 200,
    }


def test_nesting_beyond_all_recursion_is_an_answer_like_any_other() -> None:
    deep = b"".join(b"\xfa" + left.to_bytes(3, "big") for left in range(399_996, -1, -4))
    limit = sys.getrecursionlimit()
    # What this process imported may have raised it.
    sys.setrecursionlimit(1_000)
    try:
        with pytest.raises(OperatorError):
            checked_transaction(FIELDS, KEY.address, b"\x02" + deep)
    finally:
        sys.setrecursionlimit(limit)


def test_a_number_with_zeros_before_it_is_not_sent_though_it_says_the_same() -> None:
    for nonce in range(10_000):
        items: list[Any] = rlp.decode(signed(nonce=nonce)[1:])
        fields = {**FIELDS, "nonce": nonce}
        if len(items[-2]) < 32:
            assert checked_transaction(fields, KEY.address, b"\x02" + rlp.encode(items))
            padded = [*items[:-2], items[-2].rjust(32, b"\0"), items[-1]]
            with pytest.raises(OperatorError):
                checked_transaction(fields, KEY.address, b"\x02" + rlp.encode(padded))
            return
    raise AssertionError("no r of 10,000 is short")


@pytest.mark.parametrize("lie", lies().values(), ids=lies().keys())
def test_what_is_not_the_accounts_signature_under_it_is_not_sent(lie: bytes) -> None:
    with pytest.raises(OperatorError, match="not the account's signature"):
        checked_transaction(FIELDS, KEY.address, lie)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_the_owners_words(raw: bytes) -> None:
    with pytest.raises(OperatorError):
        checked_transaction(FIELDS, KEY.address, raw)


@given(st.integers(1, 2**32), st.integers(0, 2**20))
def test_every_key_and_nonce_passes_in_its_one_spelling(secret: int, nonce: int) -> None:
    key = SigningKey(secret.to_bytes(32, "big"))
    raw = signed(key, nonce=nonce)
    assert checked_transaction({**FIELDS, "nonce": nonce}, key.address, raw) == raw


def test_an_answer_in_parts_is_taken_and_a_signer_that_only_sends_is_told_of() -> None:
    whole = {"raw": "0x" + signed().hex(), "tx": {"nonce": "0x7"}}
    with rpc_stand_in(lambda _method, _params, number: result(whole, number)) as signer:
        assert asked(signer.url) == signed()
    with rpc_stand_in(lambda _method, _params, number: error(-32601, "no such method", number)) as signer:
        with pytest.raises(OperatorError, match="cannot sign transactions") as caught:
            asked(signer.url)
        assert "eth_signTransaction" in caught.value.hint
    for nonsense in (None, 7, "0xzz", {}, [], {"raw": 7}):
        answering = rpc_stand_in(lambda _method, _params, number, said=nonsense: result(said, number))
        with answering as signer, pytest.raises(OperatorError):
            asked(signer.url)


def test_the_signer_is_shown_all_that_it_signs() -> None:
    seen: list[Any] = []

    def answer(_method: str, params: Any, number: int) -> Any:
        seen.append(params)
        return result("0x" + signed().hex(), number)

    with rpc_stand_in(answer) as signer:
        asked(signer.url)
    (shown,) = seen[0]
    assert json.loads(json.dumps(shown)) == {
        "type": "0x2",
        "from": "0x" + KEY.address.hex(),
        "to": FIELDS["to"],
        "chainId": "0x7a69",
        "nonce": "0x7",
        "value": "0x0",
        "gas": hex(200_000),
        "maxFeePerGas": hex(5 * 10**9),
        "maxPriorityFeePerGas": hex(10**9),
        "data": "0x" + FIELDS["data"].hex(),
        "accessList": [],
    }
