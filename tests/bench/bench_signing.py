"""How fast vouchers are signed and checked, next to eth-account in the same run.

A machine's speed is not ours to promise; the ratio to eth-account on the same machine is. Takes under 15 seconds:
``python tests/bench/bench_signing.py``.
"""

import time
from collections.abc import Callable

from eth_account import Account
from eth_account.messages import encode_typed_data

from hansa.proto.documents import Voucher, ledger_domain
from hansa.proto.signing import Signed, SigningKey, check, sign
from hansa.proto.typed_data import digest

SECRET = b"\x42" * 32
SECONDS = 1.5
ROUNDS = 3


def rate(call: Callable[[], object]) -> float:
    """Calls per second: the best of three rounds, because a busy machine only ever makes it slower."""
    best = 0.0
    for _ in range(ROUNDS):
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < SECONDS / ROUNDS:
            call()
            count += 1
        best = max(best, count / spent)
    return best


def main() -> None:
    """Measure and print."""
    key, domain, oracle = SigningKey(SECRET), ledger_domain(bytes(32)), Account.from_key(SECRET)
    voucher = Voucher(channel_id=b"\1" * 32, cumulative=10**12, statement=b"\2" * 32)
    signed = sign(domain, voucher, key)
    their_domain = {
        "name": domain.name,
        "version": domain.version,
        "chainId": domain.chain_id,
        "verifyingContract": "0x" + domain.verifying_contract.hex(),
    }
    their_types = {
        "Voucher": [
            {"name": "channelId", "type": "bytes32"},
            {"name": "cumulative", "type": "uint128"},
            {"name": "statement", "type": "bytes32"},
        ]
    }
    message = {"channelId": voucher.channel_id, "cumulative": voucher.cumulative, "statement": voucher.statement}

    def their_signing() -> bytes:
        return bytes(oracle.sign_message(encode_typed_data(their_domain, their_types, message)).signature)

    def their_recovery() -> str:
        signable = encode_typed_data(their_domain, their_types, message)
        return str(Account.recover_message(signable, signature=signed.signature))

    assert their_signing() == signed.signature
    print(f"{'digest':<18}{rate(lambda: digest(domain, voucher)):>10,.0f}/s")
    for name, ours, theirs in (
        ("encode + sign", lambda: sign(domain, voucher, key), their_signing),
        ("encode + recover", lambda: check(domain, Signed(document=voucher, signature=signed.signature), key.address),
         their_recovery),
    ):  # fmt: skip
        here, there = rate(ours), rate(theirs)
        print(f"{name:<18}{here:>10,.0f}/s   eth-account {there:>8,.0f}/s   ratio {here / there:5.1f}")


if __name__ == "__main__":
    main()
