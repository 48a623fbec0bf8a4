"""Print digests and signatures of our documents by eth-account: ``python tests/kit/typed_vectors.py``.

They go to ``tests/vectors/eip712.json``, so that whoever has nothing but this repository sees whether a digest of ours
is anybody else's too. Nothing of Hansa is imported: the types are written down as text, and what is signed is made up.
Integers are decimal text and bytes hex, since JSON's numbers are too short for money.
"""

import itertools
import json
import re
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils import keccak

SECRET = bytes(range(32))
DOMAIN = {
    "name": "HansaEscrow",
    "version": "1",
    "chainId": 31_337,
    "verifyingContract": "0x1234567890abcdef1234567890abcdef12345678",
}
TYPES = (
    (
        "ChannelConfig(address payer,address payerSigner,address payee,address payeeSigner,"
        "address token,uint64 challengePeriod,bytes32 splitsHash,bytes32 salt)"
    ),
    "Voucher(bytes32 channelId,uint128 cumulative,bytes32 statement)",
    "CooperativeClose(bytes32 channelId,uint128 cumulative)",
    "MeterLine(bytes32 lease,uint32 shard,bytes32 device,uint64 startMs,uint64 endMs,uint128 deviceMs,uint128 amount)",
    (
        "Receipt(bytes32 channelId,uint64 seq,bytes32 prev,uint64 periodStartMs,uint64 periodEndMs,"
        "uint128 amountTotal,uint32 lines,bytes32 linesRoot,bytes32 evidence)"
    ),
    (
        "NodeBinding(address account,bytes peerId,bytes32 roles,uint128 spendLimit,uint64 notBefore,"
        "uint64 notAfter,uint64 epoch)"
    ),
    "TreeHead(bytes32 logId,uint64 size,bytes32 root,uint64 timestampMs)",
    "CreditLine(address creditor,address debtor,bytes32 unit,uint128 limit,uint64 notAfter,uint64 nonce)",
    "Payment(address creditor,address debtor,bytes32 unit,uint128 total,string how,uint64 nonce,uint64 paidMs)",
    "Netting(address lower,address higher,bytes32 unit,uint128 total,uint64 nonce)",
    "ChannelEnd(bytes32 channelId,uint128 paid,uint64 settledMs)",
    (
        "Award(address signer,bytes32 bid,uint32 shard,bytes32 channelId,bytes32 workload,uint64 confirmByMs,"
        "uint64 startByMs,uint64 endsMs,bytes32 nonce)"
    ),
    (
        "Decline(address signer,bytes32 tender,string reason,string relaxation,Shortfall[] shortfalls,"
        "uint64 expiresMs,bytes32 nonce)Shortfall(string name,string wanted,string nearest)"
    ),
    (
        "Advert(address signer,string peerId,string[] addresses,Device[] devices,uint32 free,string tier,"
        "string[] features,string region,Fact[] facts,string currency,uint128 priceE18PerDeviceMs,uint64 sequence,"
        "uint64 expiresMs)Device(bytes32 id,string kind,string model,uint64 memoryBytes,uint32 coresMilli,Fact[] facts)"
        "Fact(string name,string value)"
    ),
)
_BYTES = {"address": 20, "bytes32": 32, "bytes": 39}


def fields_of(text: str) -> dict[str, list[dict[str, str]]]:
    """The structs that a type's text names."""
    return {
        name: [dict(zip(("type", "name"), each.split(" "), strict=True)) for each in listed.split(",")]
        for name, listed in re.findall(r"(\w+)\(([^)]*)\)", text)
    }


def value_of(kind: str, structs: dict[str, Any], number: Any) -> Any:
    """Something for a field: the bounds of integers, text beyond ASCII, an empty list now and then."""
    turn = next(number)
    if kind.endswith("[]"):
        return [value_of(kind[:-2], structs, number) for _ in range(turn % 3)]
    if kind in structs:
        return {each["name"]: value_of(each["type"], structs, number) for each in structs[kind]}
    if kind in _BYTES:
        return "0x" + bytes((turn + place) % 256 for place in range(_BYTES[kind])).hex()
    if kind == "string":
        return ("", "plain", "schließlich … \N{SNOWMAN}")[turn % 3]
    return str((0, 1, (1 << int(kind.removeprefix("uint"))) - 1, turn)[turn % 4])


def plain(value: Any) -> Any:
    """As eth-account takes it: integers as such."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return int(value) if re.fullmatch(r"\d+", value) else value


def vectors() -> dict[str, Any]:
    """All of them."""
    account = Account.from_key(SECRET)
    made = []
    number = itertools.count(1)
    for text in TYPES:
        structs = fields_of(text)
        primary = text.partition("(")[0]
        message = value_of(primary, structs, number)
        signable = encode_typed_data(DOMAIN, structs, plain(message))
        digest = keccak(b"\x19" + signable.version + signable.header + signable.body)
        signature = account.sign_message(signable).signature
        made.append(
            {
                "primaryType": primary,
                "typeString": text,
                "typeHash": "0x" + keccak(text.encode()).hex(),
                "message": message,
                "structHash": "0x" + signable.body.hex(),
                "digest": "0x" + digest.hex(),
                "signature": "0x" + signature.hex().removeprefix("0x"),
            }
        )
        separator = signable.header
    return {
        "note": "made by tests/kit/typed_vectors.py with eth-account; the key is a secret that anybody knows",
        "domain": DOMAIN | {"chainId": str(DOMAIN["chainId"])},
        "domainSeparator": "0x" + separator.hex(),
        "privateKey": "0x" + SECRET.hex(),
        "address": account.address.lower(),
        "types": made,
    }


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=1))
