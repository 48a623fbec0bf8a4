"""What a chain's nodes answer, read: blocks, receipts, logs, numbers. Whatever is not exactly that is malformed.

No I/O.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hansa.node.chain.json_rpc import data, quantity, rows, table
from hansa.proto.errors import Malformed

T = TypeVar("T")

FEE_BITS = 96
"""A fee of 2**96 smallest units for one unit of gas is more than there are coins of any chain."""
HASH_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block's header, as far as it matters here.

    Attributes:
        number: its height.
        hash: its name.
        parent: the name of the block before it.
        at_s: when, as the chain counts.
        base_fee: what a unit of gas costs in it at least, in the coin's smallest unit.
    """

    number: int
    hash: bytes
    parent: bytes
    at_s: int
    base_fee: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionReceipt:
    """That a transaction is in a block, and how it went."""

    ok: bool
    block_number: int
    block_hash: bytes
    gas_used: int
    fee_paid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One thing that a contract said, and where in the chain it stands."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    block_number: int
    block_hash: bytes
    index: int


def read_block(raw: Any) -> Block:
    """A block of a node's answer.

    Raises:
        Malformed: it is none.
    """
    found = table(raw, "block", "number", "hash", "parentHash", "timestamp")
    return Block(
        number=quantity(found["number"], "block.number", 63),
        hash=data(found["hash"], "block.hash", HASH_BYTES),
        parent=data(found["parentHash"], "block.parentHash", HASH_BYTES),
        at_s=quantity(found["timestamp"], "block.timestamp", 63),
        base_fee=quantity(found.get("baseFeePerGas", "0x0"), "block.baseFeePerGas", FEE_BITS),
    )


def read_receipt(raw: Any) -> TransactionReceipt | None:
    """A receipt of a node's answer; nothing where the transaction is in no block.

    Raises:
        Malformed: it is none.
    """
    if raw is None:
        return None
    found = table(raw, "receipt", "status", "blockNumber", "blockHash", "gasUsed")
    gas_used = quantity(found["gasUsed"], "receipt.gasUsed", 63)
    return TransactionReceipt(
        ok=quantity(found["status"], "receipt.status", 1) == 1,
        block_number=quantity(found["blockNumber"], "receipt.blockNumber", 63),
        block_hash=data(found["blockHash"], "receipt.blockHash", HASH_BYTES),
        gas_used=gas_used,
        fee_paid=gas_used * quantity(found.get("effectiveGasPrice", "0x0"), "receipt.effectiveGasPrice", FEE_BITS),
    )


def read_logs(raw: Any) -> tuple[Log, ...]:
    """The logs of a node's answer, in their order in the chain.

    Raises:
        Malformed: they are none, or are not in order.
    """
    logs = tuple(_read_log(row) for row in rows(raw, "logs"))
    places = [(log.block_number, log.index) for log in logs]
    if places != sorted(set(places)):
        raise Malformed("logs", "are not in the order of the chain")
    return logs


def _read_log(raw: Any) -> Log:
    found = table(raw, "log", "address", "topics", "data", "blockNumber", "blockHash", "logIndex")
    if found.get("removed"):
        raise Malformed("log", "is of a block that was dropped")
    return Log(
        address=data(found["address"], "log.address", 20),
        topics=tuple(data(topic, "log.topics", HASH_BYTES) for topic in rows(found["topics"], "log.topics")),
        data=data(found["data"], "log.data"),
        block_number=quantity(found["blockNumber"], "log.blockNumber", 63),
        block_hash=data(found["blockHash"], "log.blockHash", HASH_BYTES),
        index=quantity(found["logIndex"], "log.logIndex", 31),
    )


def read_receipt_logs(raw: Any) -> tuple[Log, ...]:
    """The logs in a receipt of a node's answer; none where the transaction is in no block.

    Raises:
        Malformed: it is none.
    """
    return () if raw is None else read_logs(table(raw, "receipt", "logs")["logs"])


def number_of(what: str, bits: int) -> Callable[[Any], int]:
    """What reads a number of at most so many bits."""
    return lambda raw: quantity(raw, what, bits)


def any_data(what: str) -> Callable[[Any], bytes]:
    """What reads bytes of any length."""
    return lambda raw: data(raw, what)


def of_data(read: Callable[[bytes], T]) -> Callable[[Any], T]:
    """What reads a contract's answer by what reads the bytes of it."""
    return lambda raw: read(data(raw, "answer"))
