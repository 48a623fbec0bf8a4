"""The escrow contract's words in bytes: calls that are made, answers and logs that are read. No I/O.

The ABI is that of the compiled artefact that comes with Hansa (``hansa.node.chain.escrow_artefact``), which a test
holds this against. What comes back from a chain's nodes is read word by word, and nothing else than what it must be
passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode

from hansa.market.settlement import CLOSED, CLOSING, OPEN, UNSET, ChannelState, Claim, Happening
from hansa.node.chain.chain_answers import Log
from hansa.proto.documents import ChannelConfig
from hansa.proto.errors import Malformed
from hansa.proto.keccak import keccak256
from hansa.proto.splits import Split
from hansa.proto.typed_data import Domain
from hansa.proto.units import Address, Uint256

WORD: Final = 32
MOST_CLAIMS: Final = 32
PHASES: Final = (UNSET, OPEN, CLOSING, CLOSED)
CLAIM_FAULTS: Final = (
    "",
    "not above what was claimed",
    "above the deposit, or no open channel",
    "not signed by the payer's signer",
)

_CONFIG: Final = "(address,address,address,address,address,uint64,bytes32,bytes32)"
_SPLITS: Final = "(address,uint256)[]"
_CALLS: Final = {
    "open": (_CONFIG, _SPLITS, "uint128"),
    "openWithPermit": (_CONFIG, _SPLITS, "uint128", "uint256", "uint8", "bytes32", "bytes32"),
    "topUp": (_CONFIG, "uint128"),
    "claim": (_CONFIG, "uint128", "bytes32", "bytes"),
    "claimBatch": (f"({_CONFIG},uint256,bytes32,uint256,uint256,uint256)[]",),
    "settle": (_CONFIG, _SPLITS),
    "requestClose": (_CONFIG,),
    "finalize": (_CONFIG, _SPLITS),
    "payeeClose": (_CONFIG, _SPLITS, "uint128", "bytes32", "bytes"),
    "cooperativeClose": (_CONFIG, _SPLITS, "uint128", "bytes", "bytes"),
    "withdraw": ("address", "address"),
    "credit": ("address", "address"),
    "channel": ("bytes32",),
    "eip712Domain": (),
    # Of the token.
    "approve": ("address", "uint256"),
    "allowance": ("address", "address"),
    "balanceOf": ("address",),
    "decimals": (),
    "symbol": (),
    "name": (),
    "nonces": ("address",),
    "DOMAIN_SEPARATOR": (),
    "mint": ("address", "uint256"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """EIP-2612: the owner of tokens lets somebody move some of them, by a signature and without a transaction."""

    owner: Address
    spender: Address
    value: Uint256
    nonce: Uint256
    deadline: Uint256


def call(name: str, *values: Any) -> bytes:
    """What a contract is told to call a function of it."""
    return _selector(name) + abi_encode(_CALLS[name], values)


def _selector(name: str) -> bytes:
    return keccak256(f"{name}({','.join(_CALLS[name])})".encode())[:4]


def amount_paid_in(content: bytes) -> int:
    """What a call pays into a channel: one of ``open``, ``openWithPermit`` and ``topUp``, as it was written down."""
    name = next(each for each in ("open", "openWithPermit", "topUp") if content[:4] == _selector(each))
    return int(abi_decode(_CALLS[name], content[4:])[_CALLS[name].index("uint128")])


def config_words(config: ChannelConfig) -> tuple[Any, ...]:
    """A config as the ABI wants it."""
    return (
        config.payer,
        config.payer_signer,
        config.payee,
        config.payee_signer,
        config.token,
        config.challenge_period,
        config.splits_hash,
        config.salt,
    )


def split_words(splits: Sequence[Split]) -> list[tuple[bytes, int]]:
    """Splits as the ABI wants them."""
    return [(split.account, split.bps) for split in splits]


def claim_words(claim: Claim) -> tuple[Any, ...]:
    """One voucher of a batch as the ABI wants it."""
    voucher, signature = claim.voucher.document, claim.voucher.signature
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    return (config_words(claim.config), voucher.cumulative, voucher.statement, r, s, signature[64])


# Answers.


def words(answer: bytes, count: int, what: str) -> tuple[int, ...]:
    """An answer of exactly so many words, as numbers.

    Raises:
        Malformed: it is longer or shorter.
    """
    if len(answer) != count * WORD:
        raise Malformed(what, f"is not exactly {count} words")
    return tuple(int.from_bytes(answer[at : at + WORD], "big") for at in range(0, len(answer), WORD))


def _address(word: int, what: str) -> bytes:
    if word >> 160:
        raise Malformed(what, "is no address")
    return word.to_bytes(20, "big")


def _amount(word: int, what: str) -> int:
    if word >> 128:
        raise Malformed(what, "does not fit 128 bits")
    return word


def read_channel(answer: bytes) -> ChannelState:
    """What ``channel`` answers.

    Raises:
        Malformed: it is no channel that could be.
    """
    phase, deposit, claimed, settled, closable_at_s = words(answer, 5, "channel")
    if phase >= len(PHASES):
        raise Malformed("channel.phase", "is none")
    if not settled <= claimed <= deposit:
        raise Malformed("channel", "has more settled than claimed, or more claimed than deposited")
    if closable_at_s >> 63:
        raise Malformed("channel.closableAt", "is no time")
    return ChannelState(
        phase=PHASES[phase],
        deposit=_amount(deposit, "channel.deposit"),
        claimed=claimed,
        settled=settled,
        closable_at_s=closable_at_s if PHASES[phase] == CLOSING else 0,
    )


def read_amount(answer: bytes, what: str = "answer") -> int:
    """One amount of at most 128 bits.

    Raises:
        Malformed: it is something else.
    """
    return _amount(words(answer, 1, what)[0], what)


def read_number(answer: bytes, what: str = "answer") -> int:
    """One number.

    Raises:
        Malformed: it is something else.
    """
    return words(answer, 1, what)[0]


def read_faults(answer: bytes, count: int) -> tuple[int, ...]:
    """What ``claimBatch`` answers for so many claims.

    Raises:
        Malformed: it is something else.
    """
    offset, length, *faults = words(answer, 2 + count, "claimBatch")
    if offset != WORD or length != count or any(fault >= len(CLAIM_FAULTS) for fault in faults):
        raise Malformed("claimBatch", "answers other claims than it was asked for")
    return tuple(faults)


def read_text(answer: bytes, what: str = "answer", most_bytes: int = 256) -> str:
    """One text.

    Raises:
        Malformed: it is none, or too long.
    """
    if len(answer) < 2 * WORD or int.from_bytes(answer[:WORD], "big") != WORD:
        raise Malformed(what, "is no text")
    length = int.from_bytes(answer[WORD : 2 * WORD], "big")
    if length > most_bytes or len(answer) < 2 * WORD + length:
        raise Malformed(what, f"is longer than {most_bytes} bytes, or than itself")
    return answer[2 * WORD : 2 * WORD + length].decode("utf-8", "replace")


def escrow_domain_answer(domain: Domain) -> bytes:
    """What ``eip712Domain()`` of an escrow must answer, to the byte (EIP-5267)."""
    types = ("bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]")
    values: tuple[Any, ...] = (
        b"\x0f",
        domain.name,
        domain.version,
        domain.chain_id,
        domain.verifying_contract,
        bytes(32),
        [],
    )
    return abi_encode(types, values)


# Logs.


def _topic(signature: str) -> bytes:
    return keccak256(signature.encode())


CLAIMED: Final = _topic("Claimed(bytes32,uint256,uint256,bytes32)")
CLAIM_SKIPPED: Final = _topic("ClaimSkipped(bytes32,uint256,uint256,uint256)")
WITHDRAWN: Final = _topic("Withdrawn(address,address,uint256)")
_EVENTS: Final = {
    _topic("Opened(bytes32,address,address,address,address,address,uint64,bytes32,bytes32,uint256)"): "opened",
    _topic("ToppedUp(bytes32,address,uint256)"): "topped-up",
    CLAIMED: "claimed",
    _topic("CloseRequested(bytes32)"): "close-requested",
    _topic("Settled(bytes32,uint256)"): "settled",
    _topic("Closed(bytes32,address,uint256,uint256)"): "closed",
    WITHDRAWN: "withdrawn",
}


def read_happening(log: Log, *, at_s: int, final: bool) -> Happening | None:
    """What a log of the escrow says; nothing where it is of a kind that is not followed.

    Raises:
        Malformed: it is no log that the escrow could have written.
    """
    kind = _EVENTS.get(log.topics[0]) if log.topics else None
    if kind is None:
        return None
    channel_id, account = bytes(32), bytes(20)
    places = {"opened": (4, 7, 6), "topped-up": (3, 1, 0), "claimed": (2, 3, 0), "close-requested": (2, 0, 0)}
    places |= {"settled": (2, 1, 0), "closed": (3, 2, 0), "withdrawn": (3, 1, 0)}
    topics, length, amount_at = places[kind]
    if len(log.topics) != topics:
        raise Malformed(f"log {kind}", "has another number of topics than it must have")
    values = words(log.data, length, f"log {kind}")
    if kind == "withdrawn":
        account = _address(int.from_bytes(log.topics[2], "big"), f"log {kind}")
    else:
        channel_id = log.topics[1]
        if topics > 2:
            account = _address(int.from_bytes(log.topics[2], "big"), f"log {kind}")
    return Happening(
        cursor=0,
        kind=kind,
        channel_id=channel_id,
        account=account,
        amount=_amount(values[amount_at], f"log {kind}") if values else 0,
        at_s=at_s,
        final=final,
    )


def paid_by(logs: Sequence[Log], escrow: bytes) -> dict[tuple[bytes, int], int]:
    """By how much each claimed total rose, as the logs of one transaction say, by channel and new total.

    Raises:
        Malformed: a log of the escrow is none that it could have written.
    """
    paid: dict[tuple[bytes, int], int] = {}
    for log in logs:
        if log.address == escrow and log.topics and log.topics[0] == CLAIMED and len(log.topics) == 2:
            cumulative, amount, _ = words(log.data, 3, "log claimed")
            paid[log.topics[1], cumulative] = _amount(amount, "log claimed")
    return paid


def withdrawn_by(logs: Sequence[Log], escrow: bytes) -> int:
    """What was paid out, as the logs of one transaction say.

    Raises:
        Malformed: a log of the escrow is none that it could have written.
    """
    return sum(
        _amount(words(log.data, 1, "log withdrawn")[0], "log withdrawn")
        for log in logs
        if log.address == escrow and log.topics and log.topics[0] == WITHDRAWN
    )
