"""The nodes through which this one sees a chain, and how far each is believed.

One node can lie. So what decides about money (which chain this is, which code stands at an address, which block is
final, what a contract says at that block) is asked of all of them at once: more than half must answer, and all that
answer must say the same. With one node configured that is no more than its own word, and ``hansa doctor`` says so.

What only costs a fee or a moment when it is wrong (fees, the newest block) is taken from the first that answers.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio

from hansa.node.chain.chain_answers import (
    FEE_BITS,
    Block,
    Log,
    TransactionReceipt,
    any_data,
    number_of,
    of_data,
    read_block,
    read_logs,
    read_receipt,
    read_receipt_logs,
)
from hansa.node.chain.json_rpc import (
    RpcAway,
    RpcError,
    RpcFault,
    RpcMalformed,
    RpcNode,
    hex_data,
    hex_quantity,
)
from hansa.proto.errors import Malformed

T = TypeVar("T")

MOST_CHAIN_ID_BITS = 63
NONCE_BITS = 48
"""No account has sent so much."""
STRAGGLER_S = 5.0
"""How long the slow are waited for when more than half have answered."""


class NodesDisagree(RpcFault):
    """Two nodes of one chain say different things about what both must know. One of them is broken, or lies."""


class ChainNodes:
    """All nodes of one chain that the owner named.

    Attributes:
        nodes: the nodes.
        faults: what is wrong with a node by its name, in words; empty when its last answer was sound.
        confirmations: how many blocks must stand on a block until it counts as final; 0 takes the chain's own word
            (``finalized``).
    """

    def __init__(self, nodes: Sequence[RpcNode], *, confirmations: int) -> None:
        """Nothing is asked yet."""
        assert nodes, "a chain is seen through at least one node"
        self.nodes = tuple(nodes)
        self.confirmations = confirmations
        self.faults: dict[str, str] = {}

    async def close(self) -> None:
        """Hang up on all of them."""
        for node in self.nodes:
            await node.close()

    async def _say(self, node: RpcNode, ask: Awaitable[Any], read: Callable[[Any], T]) -> T:
        """One node's answer, read; what is wrong with it is remembered."""
        try:
            found = read(await ask)
        except Malformed as fault:
            wrong = RpcMalformed(node.name, f"answered with what cannot be: {fault}")
            self.faults[node.name] = wrong.why
            raise wrong from None
        except RpcError:
            self.faults.pop(node.name, None)
            raise
        except RpcFault as fault:
            self.faults[node.name] = fault.why
            raise
        self.faults.pop(node.name, None)
        return found

    async def first(self, read: Callable[[Any], T], method: str, *params: Any) -> T:
        """The answer of the first node that has a sound one.

        Raises:
            RpcError: it said no.
            RpcFault: none has one; the last one's fault.
        """
        for node in self.nodes[:-1]:
            try:
                return await self._say(node, node.read(method, *params), read)
            except (RpcAway, RpcMalformed):
                continue
        node = self.nodes[-1]
        return await self._say(node, node.read(method, *params), read)

    async def agreed(self, read: Callable[[Any], T], method: str, *params: Any) -> T:
        """What more than half of the nodes answer, and no node contradicts.

        Raises:
            NodesDisagree: two of them answer different things.
            RpcError: they say no.
            RpcAway: half of them or more do not answer.
        """
        answers = await self._all(read, method, *params)
        said = {name: answer for name, answer in answers.items() if not isinstance(answer, RpcFault)}
        noes = {name: answer for name, answer in answers.items() if isinstance(answer, RpcError)}
        if 2 * (len(said) + len(noes)) <= len(self.nodes):
            raise next(answer for answer in answers.values() if isinstance(answer, RpcFault))
        values = list(said.values())
        if (said and noes) or any(value != values[0] for value in values):
            names = ", ".join(sorted((*said, *noes)))
            fault = NodesDisagree(names, f"say different things when they are asked {method}")
            for name in (*said, *noes):
                self.faults[name] = fault.why
            raise fault
        if noes:
            raise next(iter(noes.values()))
        return values[0]

    async def _all(self, read: Callable[[Any], T], method: str, *params: Any) -> dict[str, T | RpcFault]:
        answers: dict[str, T | RpcFault] = {}
        slow = RpcAway("the chain's node", f"answers more than {STRAGGLER_S:g} s after most of the others")

        async def ask(number: int, node: RpcNode) -> None:
            try:
                answers[f"{node.name} ({number})"] = await self._say(node, node.read(method, *params), read)
            except RpcFault as fault:
                answers[f"{node.name} ({number})"] = fault
            if 2 * sum(not isinstance(each, RpcAway) for each in answers.values()) > len(self.nodes):
                # One silent node does not hold up what the others can decide.
                nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + STRAGGLER_S)

        async with trio.open_nursery() as nursery:
            for number, node in enumerate(self.nodes, start=1):
                nursery.start_soon(ask, number, node)
        for number, node in enumerate(self.nodes, start=1):
            if answers.setdefault(f"{node.name} ({number})", slow) is slow:
                self.faults[node.name] = slow.why
        return answers

    # What decides about money: agreed.

    async def chain_id(self) -> int:
        """Which chain this is."""
        return await self.agreed(number_of("chain id", MOST_CHAIN_ID_BITS), "eth_chainId")

    async def final_block(self) -> Block:
        """The newest block that cannot be dropped any more, as all nodes have it.

        Nodes are not equally far, so it is the lowest of what they hold for final: a node that lags, or lies downwards,
        can only make this one wait.
        """
        numbers = await self._all(self._final_number, "eth_getBlockByNumber", self._final_tag, False)
        said = [number for number in numbers.values() if isinstance(number, int)]
        if 2 * len(said) <= len(self.nodes):
            raise next(number for number in numbers.values() if isinstance(number, RpcFault))
        return await self.agreed_block(min(said))

    async def agreed_block(self, number: int) -> Block:
        """A block by its height, as all nodes have it."""
        return await self.agreed(read_block, "eth_getBlockByNumber", hex_quantity(number), False)

    @property
    def _final_tag(self) -> str:
        return "latest" if self.confirmations else "finalized"

    def _final_number(self, raw: Any) -> int:
        return max(0, read_block(raw).number - self.confirmations)

    async def code(self, address: bytes, block: Block) -> bytes:
        """The code at an address."""
        return await self.agreed(any_data("code"), "eth_getCode", hex_data(address), _at(block))

    async def call(self, read: Callable[[bytes], T], to: bytes, content: bytes, block: Block) -> T:
        """What a contract answers at a block, read."""
        question = {"to": hex_data(to), "data": hex_data(content)}
        return await self.agreed(of_data(read), "eth_call", question, _at(block))

    async def nonce(self, account: bytes, block: Block) -> int:
        """How many transactions of an account were in blocks up to this one."""
        return await self.agreed(
            number_of("nonce", NONCE_BITS), "eth_getTransactionCount", hex_data(account), _at(block)
        )

    async def logs(self, address: bytes, first: int, last: Block) -> tuple[Log, ...]:
        """Everything that a contract said from block ``first`` to block ``last``, both included."""
        wanted = {"address": hex_data(address), "fromBlock": hex_quantity(first), "toBlock": hex_quantity(last.number)}
        return await self.agreed(read_logs, "eth_getLogs", wanted)

    async def final_receipt(self, transaction: bytes) -> TransactionReceipt | None:
        """How a transaction went."""
        return await self.agreed(read_receipt, "eth_getTransactionReceipt", hex_data(transaction))

    # What is only a hint: the first that answers.

    async def newest_block(self) -> Block:
        """The newest block of the first node that answers."""
        return await self.first(read_block, "eth_getBlockByNumber", "latest", False)

    async def block_numbered(self, number: int) -> Block | None:
        """A block by its height, if there is one."""
        return await self.first(
            lambda raw: None if raw is None else read_block(raw),
            "eth_getBlockByNumber",
            hex_quantity(number),
            False,
        )

    async def newest_call(
        self, read: Callable[[bytes], T], to: bytes, content: bytes, *, sender: bytes | None = None
    ) -> T:
        """What a contract answers at the newest block, read."""
        question = {"to": hex_data(to), "data": hex_data(content)}
        if sender is not None:
            question["from"] = hex_data(sender)
        return await self.first(of_data(read), "eth_call", question, "latest")

    async def newest_logs(self, address: bytes, first: int, last: int) -> tuple[Log, ...]:
        """What a contract said in blocks that may still be dropped."""
        wanted = {"address": hex_data(address), "fromBlock": hex_quantity(first), "toBlock": hex_quantity(last)}
        return await self.first(read_logs, "eth_getLogs", wanted)

    async def newest_receipt(self, transaction: bytes) -> TransactionReceipt | None:
        """How a transaction went, if it is in a block, which may still be dropped."""
        return await self.first(read_receipt, "eth_getTransactionReceipt", hex_data(transaction))

    async def newest_receipt_logs(self, transaction: bytes) -> tuple[Log, ...]:
        """What contracts said in a transaction, if it is in a block."""
        return await self.first(read_receipt_logs, "eth_getTransactionReceipt", hex_data(transaction))

    async def pending_nonce(self, account: bytes) -> int:
        """The first nonce of an account that no transaction known to a node has: the lowest that any node says.

        Raises:
            RpcFault: half of them or more do not answer.
        """
        return await self._lowest_nonce(account, "pending")

    async def newest_nonce(self, account: bytes) -> int:
        """The first nonce of an account that no transaction in a block has: the lowest that any node says.

        Raises:
            RpcFault: half of them or more do not answer.
        """
        return await self._lowest_nonce(account, "latest")

    async def _lowest_nonce(self, account: bytes, tag: str) -> int:
        read = number_of("nonce", NONCE_BITS)
        answers = await self._all(read, "eth_getTransactionCount", hex_data(account), tag)
        said = [answer for answer in answers.values() if isinstance(answer, int)]
        if 2 * len(said) <= len(self.nodes):
            raise next(answer for answer in answers.values() if isinstance(answer, RpcFault))
        return min(said)

    async def coins(self, account: bytes) -> int:
        """What an account has to pay fees with, in the coin's smallest unit."""
        return await self.first(number_of("balance", 128), "eth_getBalance", hex_data(account), "latest")

    async def tip(self) -> int:
        """What miners are given beside the base fee, for a unit of gas."""
        return await self.first(number_of("tip", FEE_BITS), "eth_maxPriorityFeePerGas")

    async def gas_of(self, sender: bytes, to: bytes, content: bytes) -> int:
        """How much gas a call would take; ``RpcError`` if it would fail."""
        question = {"from": hex_data(sender), "to": hex_data(to), "data": hex_data(content)}
        return await self.first(number_of("gas", 63), "eth_estimateGas", question)

    async def send(self, raw: bytes) -> None:
        """Hand a signed transaction to every node. One that takes it is enough.

        Raises:
            RpcError: those that answered refused it.
            RpcFault: nobody answered.
        """
        faults: list[RpcFault] = []
        for node in self.nodes:
            try:
                await self._say(node, node.order("eth_sendRawTransaction", hex_data(raw)), any_data("hash"))
            except RpcError as fault:
                faults.insert(0, fault)
            except RpcFault as fault:
                faults.append(fault)
        if len(faults) == len(self.nodes):
            raise faults[0]


def _at(block: Block) -> dict[str, Any]:
    """A block by its name (EIP-1898): a number would mean another block after a reorganisation."""
    return {"blockHash": hex_data(block.hash), "requireCanonical": True}
