"""Transactions that arrive: each intention is in effect once, through crashes, losses, high fees and reorganisations.

An intention is written down with its nonce and its first signed transaction before anything is sent
(``hansa.node.chain.evm_store``). Then it is tended: sent again when it was dropped or a reorganisation took it out,
replaced by one with a higher fee when it is stuck, and let go of when it is final. Whatever is sent for it has the same
nonce, and a chain takes a nonce once.

Two programs that send for one account get in each other's way. A nonce that somebody else's transaction has for good is
noticed and said; the intention is then free to be begun anew.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

from hansa.market.settlement import Refused
from hansa.node.chain.chain_answers import Block, Log
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.evm_signing import TransactionSigner, transaction_hash
from hansa.node.chain.evm_store import FINAL, MINED, SENT, Attempt, EvmStore, Intention
from hansa.node.chain.json_rpc import RpcAway, RpcError, RpcFault, RpcMalformed, hex_data
from hansa.node.plain_text import plain
from hansa.node.settings.evm_limits import FeeLimits
from hansa.proto.signing import checksum_address

DAY_MS: Final = 24 * 3_600_000
MOST_GAS: Final = 4_000_000
"""Above what any operation of the escrow takes, the largest batch of claims included."""
GAS_MARGIN: Final = 20_000
POLL_S: Final = 2.0
STUCK_MS: Final = 60_000
AGAIN_MS: Final = 20_000
ERROR_STRING: Final = bytes.fromhex("08c379a0")
FINAL_BLOCK: Final = "final block"
TAKEN_UP_MS: Final = 7 * DAY_MS
"""What was final for longer is not looked at again."""
FOREIGN: Final = "another program sends transactions from this account"


class FeesTooHigh(Refused):
    """The chain asks for more than the owner wants to spend. It may be otherwise later."""


def reason_of(fault: RpcError) -> str:
    """Why a contract would not do it, in its own words if it gave some."""
    found = fault.data
    if found[:4] == ERROR_STRING and len(found) >= 68:
        length = int.from_bytes(found[36:68], "big")
        return plain(found[68 : 68 + min(length, 200)].decode("utf-8", "replace"), 200)
    return fault.message


class Transactions:
    """One account's transactions on one chain.

    Attributes:
        store: what was ever meant to be sent.
        trouble: what keeps an intention back, in words, by purpose.
        counters: what went otherwise than hoped, and how often.
    """

    def __init__(
        self,
        nodes: ChainNodes,
        store: EvmStore,
        signer: TransactionSigner,
        *,
        chain_id: int,
        limits: FeeLimits,
        now_ms: Callable[[], int],
        poll_s: float = POLL_S,
        stuck_ms: int = STUCK_MS,
    ) -> None:
        """Nothing is asked or sent yet."""
        self.store = store
        self.trouble: dict[str, str] = {}
        self.counters: Counter[str] = Counter()
        self.poll_s = poll_s
        self._nodes = nodes
        self._signer = signer
        self._chain_id = chain_id
        self._limits = limits
        self._now_ms = now_ms
        self._stuck_ms = stuck_ms
        self._beginning = trio.Lock()
        self._tending = trio.Lock()
        self._tended_at = -1e9
        self._sent_ms: dict[bytes, int] = {}
        self._taken_out_ms: dict[int, int] = {}

    @property
    def address(self) -> bytes:
        """Whose transactions these are."""
        return self._signer.address

    async def carry(self, purpose: str, to: bytes, content: bytes) -> Intention:
        """Have a contract told something, once in effect, however often this is called for one purpose.

        Returns when it is in a block, which may still be dropped; it is then sent again without being asked for.

        Raises:
            Refused: the contract would not do it, or did not; or the owner's limits are in the way.
            RpcFault: no node could be asked whether it would work. Nothing was sent.
        """
        while True:
            async with self._beginning:
                current = self.store.newest(purpose)
                if current is None or (current.phase == FINAL and not current.ok):
                    current = await self._begin(purpose, to, content)
            if current.phase in (MINED, FINAL):
                if not current.ok:
                    raise Refused("the contract did not do it, though it had said that it would")
                return current
            try:
                await self.tend()
            except RpcFault as fault:
                # It is written down: whoever comes back will find it there.
                self.trouble[purpose] = str(fault)
            await trio.sleep(self.poll_s)

    async def most_fee(self) -> int:
        """What a unit of gas may cost in a transaction that is begun now.

        Raises:
            FeesTooHigh: more than the owner wants to spend.
            RpcFault: no node could be asked.
        """
        return (await self._fees())[0]

    async def logs(self, intention: Intention) -> tuple[Log, ...]:
        """What contracts said when an intention was done."""
        for attempt in reversed(self.store.attempts(intention.number)):
            found = await self._nodes.newest_receipt_logs(attempt.transaction)
            if found:
                return found
        return ()

    async def check(self, to: bytes, content: bytes) -> None:
        """Ask whether a contract would do something now.

        Raises:
            Refused: it would not.
        """
        try:
            await self._nodes.gas_of(self.address, to, content)
        except RpcError as fault:
            raise Refused(reason_of(fault)) from None

    async def _begin(self, purpose: str, to: bytes, content: bytes) -> Intention:
        """Estimate, choose a nonce, sign, write down, send."""
        try:
            gas = await self._nodes.gas_of(self.address, to, content)
        except RpcError as fault:
            raise Refused(reason_of(fault)) from None
        if gas > MOST_GAS:
            raise RpcMalformed("the chain's node", f"says that this takes {gas} gas, which cannot be")
        gas += gas // 4 + GAS_MARGIN
        most_fee, tip = await self._fees()
        self._check_spending(gas * most_fee)
        nonce = await self._next_nonce()
        at_ms = self._now_ms()
        intention = Intention(
            number=0,
            purpose=purpose,
            to=to,
            content=content,
            gas=gas,
            nonce=nonce,
            phase=SENT,
            ok=False,
            begun_ms=at_ms,
            fee_paid=0,
            block_number=0,
        )
        attempt = await self._signed(intention, most_fee, tip)
        written = self.store.intend(intention, attempt)
        await self._send(written, attempt)
        return written

    async def _signed(self, intention: Intention, most_fee: int, tip: int) -> Attempt:
        raw = await self._signer.sign_transaction(
            {
                "type": 2,
                "chainId": self._chain_id,
                "nonce": intention.nonce,
                "to": checksum_address(intention.to),
                "value": 0,
                "data": intention.content,
                "gas": intention.gas,
                "maxFeePerGas": most_fee,
                "maxPriorityFeePerGas": tip,
                "accessList": [],
            }
        )
        return Attempt(
            intention=intention.number,
            transaction=transaction_hash(raw),
            raw=raw,
            most_fee=most_fee,
            tip=tip,
            signed_ms=self._now_ms(),
        )

    # Fees.

    async def _fees(self) -> tuple[int, int]:
        """What a unit of gas may cost, and what of it is the miner's; room for the base fee to double meanwhile."""
        base_fee = (await self._nodes.newest_block()).base_fee
        limit = self._limits.most_per_gas
        tip = min(await self._nodes.tip(), limit)
        if base_fee + tip > limit:
            # A miner's wish is not worth the whole limit.
            tip = max(1, limit - base_fee)
        if base_fee >= limit:
            words = f"a unit of gas costs {base_fee} now, and chain.max_fee_per_gas allows {limit}"
            raise FeesTooHigh(words)
        return max(1, min(2 * base_fee + tip, limit)), tip

    async def _higher_fees(self, newest: Attempt) -> tuple[int, int]:
        most_fee, tip = await self._fees()
        most_fee = max(most_fee, newest.most_fee + newest.most_fee // 8 + 1)
        if most_fee > self._limits.most_per_gas:
            words = f"it is stuck, and to outbid it would take {most_fee} for a unit of gas"
            raise FeesTooHigh(f"{words}: chain.max_fee_per_gas allows {self._limits.most_per_gas}")
        return most_fee, min(max(tip, newest.tip + newest.tip // 8 + 1), most_fee)

    def _check_spending(self, fee: int, *, without: int = 0) -> None:
        spent = self.store.fees_since(self._now_ms() - DAY_MS, without=without)
        if spent + fee > self._limits.most_per_day:
            self.counters["fees above the day's limit"] += 1
            words = f"fees of {fee} on top of {spent} in 24 hours would be above chain.max_fee_per_day"
            raise FeesTooHigh(f"{words} ({self._limits.most_per_day})")

    # Nonces.

    async def _next_nonce(self) -> int:
        """The first nonce that nobody has, as far as can be seen.

        What is above a gap is never mined, and neither is anything after it: so a nonce that nobody can vouch for is
        not taken.
        """
        pending = await self._nodes.pending_nonce(self.address)
        used = await self._nodes.nonce(self.address, await self._nodes.final_block())
        used = max(used, await self._nodes.newest_nonce(self.address))
        highest = self.store.highest_nonce()
        if highest is not None and pending > highest + 1:
            self._say_foreign()
        nonce = max(pending, used, 0 if highest is None else highest + 1)
        ours = self.store.nonces_from(used)
        if any(number not in ours for number in range(used, min(nonce, used + len(ours) + 1))):
            words = f"says that nonce {nonce} is the next, and what is below it is neither in a block nor this node's"
            raise RpcAway("the chain's node", f"{words}: wait until the account's other transactions are in blocks")
        return nonce

    def _say_foreign(self) -> None:
        self.counters[FOREIGN] += 1
        self.trouble["account"] = FOREIGN + ": give each program an account of its own"

    # Tending.

    async def tend(self) -> None:
        """Look after everything that is not final. Called often; it takes its own pace.

        Raises:
            RpcFault: no node could be asked.
        """
        async with self._tending:
            if trio.current_time() - self._tended_at < self.poll_s / 2:
                return
            self._tended_at = trio.current_time()
            try:
                final = await self._nodes.final_block()
            except RpcFault:
                # What is final is in dispute. That something is in a block, or must be sent again, is seen without it.
                for intention in self.store.unsettled():
                    if intention.phase == SENT:
                        await self._look_after(intention, None)
                raise
            await self._hold_to(final)
            for intention in self.store.unsettled():
                await self._look_after(intention, final)

    async def _hold_to(self, final: Block) -> None:
        """Notice when a block that counted as final is gone, and take up anew what stood in it or above."""
        known = self.store.word(FINAL_BLOCK)
        number, name = (int(known.split()[0]), known.split()[1]) if known else (0, "")
        if known and final.number < number:
            return  # some node lags: that says nothing yet
        there = final if final.number == number or not known else await self._nodes.agreed_block(number)
        if known and there.hash.hex() != name:
            self.counters["blocks that counted as final and were dropped"] += 1
            for intention in self.store.finals_since(self._now_ms() - TAKEN_UP_MS):
                attempts = self.store.attempts(intention.number)
                if not any([await self._nodes.newest_receipt(attempt.transaction) for attempt in attempts]):
                    self.store.judge(intention.number, SENT, ok=False, fee_paid=0, block_number=0)
                    self._taken_out_ms[intention.number] = self._now_ms()
                    for attempt in attempts:
                        self._sent_ms.pop(attempt.transaction, None)
        if known != f"{final.number} {final.hash.hex()}":
            self.store.keep_word(FINAL_BLOCK, f"{final.number} {final.hash.hex()}")

    async def _look_after(self, intention: Intention, final: Block | None) -> None:
        highest = -1 if final is None else final.number
        for attempt in reversed(self.store.attempts(intention.number)):
            receipt = await self._nodes.newest_receipt(attempt.transaction)
            if receipt is not None and receipt.block_number <= highest:
                receipt = await self._nodes.final_receipt(attempt.transaction)
            if receipt is not None:
                phase = FINAL if receipt.block_number <= highest else MINED
                if (phase, receipt.block_number) != (intention.phase, intention.block_number):
                    self.trouble.pop(intention.purpose, None)
                    self.store.judge(
                        intention.number,
                        phase,
                        ok=receipt.ok,
                        # Whatever a node says, it cannot have cost more than was signed for.
                        fee_paid=min(receipt.fee_paid, intention.gas * attempt.most_fee),
                        block_number=receipt.block_number,
                    )
                return
        await self._bring_back(intention, final)

    async def _bring_back(self, intention: Intention, final: Block | None) -> None:
        """It is in no block: it waits, was dropped, is stuck, or lost its nonce to somebody else."""
        newest = self.store.attempts(intention.number)[-1]
        if intention.phase == MINED:
            self.counters["transactions that a reorganisation took out"] += 1
            self.store.judge(intention.number, SENT, ok=False, fee_paid=0, block_number=0)
            self._taken_out_ms[intention.number] = self._now_ms()
            await self._send(intention, newest)
            return
        if final is not None and await self._nodes.nonce(self.address, final) > intention.nonce:
            # For good: a nonce that is used up in a final block cannot come back to us.
            self._say_foreign()
            self.store.forget(intention.number)
            return
        if await self._nodes.newest_nonce(self.address) > intention.nonce:
            self._say_foreign()
            return
        # Sending it again does not make it any less stuck.
        waits_since_ms = max(newest.signed_ms, self._taken_out_ms.get(intention.number, 0))
        if self._now_ms() - waits_since_ms >= self._stuck_ms:
            await self._outbid(intention, newest)
        else:
            await self._send_again(intention, newest)

    async def _send_again(self, intention: Intention, newest: Attempt) -> None:
        """Send what this process has not sent for a while: some node may have dropped it."""
        sent_ms = self._sent_ms.get(newest.transaction)
        if sent_ms is None or self._now_ms() - sent_ms >= AGAIN_MS:
            await self._send(intention, newest)

    async def _outbid(self, intention: Intention, newest: Attempt) -> None:
        """Replace a transaction that is stuck by one that pays at least an eighth more, as nodes demand it."""
        try:
            most_fee, tip = await self._higher_fees(newest)
            self._check_spending(intention.gas * most_fee, without=intention.number)
        except FeesTooHigh as fault:
            await self._send_again(intention, newest)
            self.trouble[intention.purpose] = str(fault)
            return
        self.counters["stuck transactions replaced at a higher fee"] += 1
        attempt = await self._signed(intention, most_fee, tip)
        self.store.add_attempt(attempt)
        await self._send(intention, attempt)

    async def _send(self, intention: Intention, attempt: Attempt) -> None:
        """Hand it to the nodes. What they say against it is kept for people: what counts is whether it gets mined."""
        try:
            await self._nodes.send(attempt.raw)
            self.trouble.pop(intention.purpose, None)
        except RpcError as fault:
            # "already known", in as many spellings as there are kinds of nodes, is what a repeat is answered with.
            if "already" not in fault.message and "known" not in fault.message:
                self.trouble[intention.purpose] = f"{hex_data(attempt.transaction)}: {fault.message}"
                self.counters["transactions that a node did not take"] += 1
        except RpcFault as fault:
            self.trouble[intention.purpose] = str(fault)
        self._sent_ms[attempt.transaction] = self._now_ms()
