"""The escrow contract on a chain, as a settlement backend: on any chain that can deploy, send and ask."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from kit.chain_in_process import Outcome
from kit.contract_calls import Contract, EventLog, Reverted

from hansa.market.settlement import Backend, ChannelState, Claim, ClaimResult, Happening, Refused
from hansa.node.chain.escrow_artefact import ESCROW, TEST_TOKEN, Artefact, artefact, read_artefact
from hansa.node.chain.evm_escrow import CLAIM_FAULTS, PHASES, claim_words, config_words, split_words
from hansa.proto.documents import ChannelConfig, Voucher, channel_id, escrow_domain
from hansa.proto.signing import Signed, SigningKey
from hansa.proto.splits import Split
from hansa.proto.typed_data import Domain

LOT = 2**200
TEST_ARTEFACTS = Path(__file__).resolve().parents[1] / "contracts" / "artefacts"


def escrow_artefact() -> Artefact:
    """The escrow under test: ours, or the mutant that the environment names."""
    mutant = os.environ.get("HANSA_ESCROW_MUTANT")
    return read_artefact(Path(mutant)) if mutant else artefact(ESCROW)


class Chain(Protocol):
    """What a chain must do here; see ``ChainInProcess``."""

    chain_id: int
    now_s: int

    def pass_time(self, seconds: int) -> None: ...
    def deploy(self, code: bytes) -> bytes: ...
    def send(self, caller: bytes, to: bytes, data: bytes) -> Outcome: ...
    def ask(self, to: bytes, data: bytes) -> bytes: ...


class ContractHouse:
    """An escrow and a token, freshly deployed.

    Attributes:
        chain: where they are.
        escrow: the escrow's calls; ``at`` its address.
        logs: every event of the escrow since, with its time.
    """

    def __init__(self, chain: Chain, token: bytes | None = None) -> None:
        self.chain = chain
        self.escrow = Contract(escrow_artefact())
        self.coin = Contract(artefact(TEST_TOKEN))
        self.at = chain.deploy(self.escrow.creation())
        self.token = chain.deploy(self.coin.creation(6)) if token is None else token
        self.domain = escrow_domain(chain.chain_id, self.at)
        self.holds_deposits = True
        self.logs: list[tuple[EventLog, int]] = []

    async def backend(self, key: SigningKey) -> Backend:
        return ContractBackend(self, key.address)

    async def fund(self, key: SigningKey, amount: int) -> None:
        self.mint(key.address, amount)

    def mint(self, account: bytes, amount: int) -> None:
        """Give an account tokens, and let the escrow take them."""
        self.chain.send(account, self.token, self.coin.call("mint", account, amount))
        self.chain.send(account, self.token, self.coin.call("approve", self.at, LOT))

    def now_s(self) -> int:
        return self.chain.now_s

    async def pass_time(self, seconds: int) -> None:
        self.chain.pass_time(seconds)

    async def held(self) -> int:
        return self.balance(self.at)

    async def purse(self, account: bytes) -> int:
        return self.balance(account)

    def balance(self, account: bytes) -> int:
        """How many tokens an account has."""
        balance: int = self.coin.answer("balanceOf", self.chain.ask(self.token, self.coin.call("balanceOf", account)))
        return balance

    def do(self, caller: bytes, name: str, *arguments: Any) -> Outcome:
        """One transaction to the escrow.

        Raises:
            Refused: it said no, in words.
        """
        try:
            outcome = self.chain.send(caller, self.at, self.escrow.call(name, *arguments))
        except Reverted as no:
            raise Refused(str(no)) from no
        for address, topics, data in outcome.logs:
            event = self.escrow.event(topics, data) if address == self.at else None
            if event is not None:
                self.logs.append((event, self.chain.now_s))
        return outcome

    def ask(self, name: str, *arguments: Any) -> Any:
        """One question to the escrow."""
        return self.escrow.answer(name, self.chain.ask(self.at, self.escrow.call(name, *arguments)))

    def state(self, id_: bytes) -> ChannelState:
        """A channel by its id."""
        phase, deposit, claimed, settled, closable_at_s = self.ask("channel", id_)
        return ChannelState(
            phase=PHASES[phase], deposit=deposit, claimed=claimed, settled=settled, closable_at_s=closable_at_s
        )

    def history(self) -> list[Happening]:
        """The escrow's events as what happened, and to whom."""
        told = []
        for event, at_s in self.logs:
            happening = happening_of(event, cursor=len(told) + 1, at_s=at_s)
            if happening is not None:
                told.append(happening)
        return told


def happening_of(event: EventLog, *, cursor: int, at_s: int) -> Happening | None:
    """What an event of the escrow says; nothing for those about single credits and skipped claims."""
    amounts = {
        "Opened": ("opened", "payer", "deposit"),
        "ToppedUp": ("topped-up", "account", "deposit"),
        "Claimed": ("claimed", "", "cumulative"),
        "CloseRequested": ("close-requested", "", ""),
        "Settled": ("settled", "", "settled"),
        "Closed": ("closed", "account", "settled"),
        "Withdrawn": ("withdrawn", "account", "amount"),
    }
    if event.name not in amounts:
        return None
    kind, who, amount = amounts[event.name]
    return Happening(
        cursor=cursor,
        kind=kind,
        channel_id=event.values.get("channelId", bytes(32)),
        account=bytes.fromhex(event.values[who][2:]) if who else bytes(20),
        amount=event.values[amount] if amount else 0,
        at_s=at_s,
    )


class ContractBackend:
    """The contract, as one account's way to settle."""

    def __init__(self, house: ContractHouse, account: bytes) -> None:
        self._house = house
        self.account = account

    @property
    def domain(self) -> Domain:
        return self._house.domain

    async def open(self, config: ChannelConfig, splits: Sequence[Split], amount: int) -> bytes:
        self._house.do(self.account, "open", config_words(config), split_words(splits), amount)
        return channel_id(self.domain, config)

    async def top_up(self, config: ChannelConfig, amount: int) -> None:
        self._house.do(self.account, "topUp", config_words(config), amount)

    async def state(self, channel_id: bytes, *, final: bool = True) -> ChannelState:  # noqa: ARG002  (the protocol's)
        return self._house.state(channel_id)

    async def claim(self, claims: Sequence[Claim]) -> tuple[ClaimResult, ...]:
        before = len(self._house.logs)
        self._house.do(self.account, "claimBatch", [claim_words(claim) for claim in claims])
        results = []
        told = [event for event, _ in self._house.logs[before:]]
        assert len(told) == len(claims), "one event for each item"
        for index, (event, claim) in enumerate(zip(told, claims, strict=True)):
            id_ = channel_id(self.domain, claim.config)
            assert event.values["channelId"] == id_
            assert event.values["cumulative"] == claim.voucher.document.cumulative
            if event.name == "Claimed":
                assert event.values["statement"] == claim.voucher.document.statement
                results.append(ClaimResult(channel_id=id_, paid=event.values["paid"], fault=""))
            else:
                assert event.values["index"] == index
                results.append(ClaimResult(channel_id=id_, paid=0, fault=CLAIM_FAULTS[event.values["fault"]]))
        return tuple(results)

    async def settle(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        self._house.do(self.account, "settle", config_words(config), split_words(splits))

    async def request_close(self, config: ChannelConfig) -> None:
        self._house.do(self.account, "requestClose", config_words(config))

    async def finalize(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        self._house.do(self.account, "finalize", config_words(config), split_words(splits))

    async def payee_close(
        self, config: ChannelConfig, splits: Sequence[Split], voucher: Signed[Voucher] | None
    ) -> None:
        last = (0, bytes(32), b"")
        if voucher is not None:
            last = (voucher.document.cumulative, voucher.document.statement, voucher.signature)
        self._house.do(self.account, "payeeClose", config_words(config), split_words(splits), *last)

    async def cooperative_close(
        self,
        config: ChannelConfig,
        splits: Sequence[Split],
        cumulative: int,
        payer_signature: bytes,
        payee_signature: bytes,
    ) -> None:
        self._house.do(
            self.account,
            "cooperativeClose",
            config_words(config),
            split_words(splits),
            cumulative,
            payer_signature,
            payee_signature,
        )

    async def credit(self, account: bytes) -> int:
        credited: int = self._house.ask("credit", self._house.token, account)
        return credited

    async def withdraw(self, account: bytes) -> int:
        before = len(self._house.logs)
        self._house.do(self.account, "withdraw", self._house.token, account)
        amount: int = self._house.logs[before][0].values["amount"]
        return amount

    async def events(self, cursor: int):
        for happening in self._house.history()[cursor:]:
            yield happening
