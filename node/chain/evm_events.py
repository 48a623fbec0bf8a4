"""What the escrow says, followed through reorganisations: nothing is missed, and what was told too early is taken back.

What stands in final blocks is told once, for good, and all nodes must agree on it. What stands in newer blocks is told
at once, as not final; later it is either told again as final or taken back.
"""

from dataclasses import replace
from typing import Final

from hansa.market.settlement import Happening
from hansa.node.chain.chain_answers import Log
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.evm_escrow import read_happening
from hansa.node.chain.evm_store import EvmStore
from hansa.node.chain.json_rpc import RpcMalformed
from hansa.proto.errors import Malformed

LOOKED_TO: Final = "looked to block"
BLOCKS_AT_ONCE: Final = 500
MOST_AT_ONCE: Final = 200
"""Chunks in one look: a chain that is far ahead is caught up with in several."""


async def look(nodes: ChainNodes, store: EvmStore, escrow: bytes) -> None:
    """Bring what is known of the escrow's history up to now.

    Raises:
        RpcFault: the nodes do not answer, disagree, or answer what cannot be.
    """
    final = await nodes.final_block()
    known = store.word(LOOKED_TO)
    if known is None:
        # What this account has to do with the escrow begins after this.
        store.tell((), tentative={}, words={LOOKED_TO: str(final.number)})
        known = str(final.number)
    looked_to = int(known)
    for _ in range(MOST_AT_ONCE):
        if looked_to >= final.number:
            break
        last = min(looked_to + BLOCKS_AT_ONCE, final.number)
        block = final if last == final.number else await nodes.agreed_block(last)
        found = _of_escrow(await nodes.logs(escrow, looked_to + 1, block), escrow, looked_to + 1, last)
        news = await _read(nodes, found, final=True)
        told = store.tentative()
        remain = {place: happening for place, happening in told.items() if place not in news}
        store.tell(tuple(news.values()), tentative=remain, words={LOOKED_TO: str(last)})
        looked_to = last
    if looked_to >= final.number:
        await _look_ahead(nodes, store, escrow, final.number)


async def _look_ahead(nodes: ChainNodes, store: EvmStore, escrow: bytes, final_number: int) -> None:
    """Tell what stands in blocks that may still be dropped, and take back what does not any more."""
    newest = await nodes.newest_block()
    first, last = final_number + 1, min(newest.number, final_number + BLOCKS_AT_ONCE)
    found: tuple[Log, ...] = ()
    if last >= first:
        found = _of_escrow(await nodes.newest_logs(escrow, first, last), escrow, first, last)
    told = store.tentative()
    now = {(log.block_hash, log.index) for log in found}
    fresh = await _read(nodes, [log for log in found if (log.block_hash, log.index) not in told], final=False)
    gone = [replace(happening, retracted=True) for place, happening in told.items() if place not in now]
    remain = {place: happening for place, happening in told.items() if place in now}
    if fresh or gone:
        store.tell((*gone, *fresh.values()), tentative={**remain, **fresh}, words={})


def _of_escrow(logs: tuple[Log, ...], escrow: bytes, first: int, last: int) -> tuple[Log, ...]:
    """The logs, if they are what was asked for."""
    if any(log.address != escrow or not first <= log.block_number <= last for log in logs):
        raise RpcMalformed("the chain's node", "answered with logs that it was not asked for")
    return logs


async def _read(
    nodes: ChainNodes, logs: tuple[Log, ...] | list[Log], *, final: bool
) -> dict[tuple[bytes, int], Happening]:
    read: dict[tuple[bytes, int], Happening] = {}
    times: dict[int, int] = {}
    for log in logs:
        if log.block_number not in times:
            block = await nodes.block_numbered(log.block_number)
            times[log.block_number] = block.at_s if block is not None else 0
        try:
            happening = read_happening(log, at_s=times[log.block_number], final=final)
        except Malformed as fault:
            raise RpcMalformed("the chain's node", f"answered with a log that cannot be: {fault}") from None
        if happening is not None:
            read[log.block_hash, log.index] = happening
    return read
