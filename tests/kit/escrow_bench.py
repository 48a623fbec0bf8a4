"""The escrow in this process with tokens that misbehave, for tests that call the contract itself."""

from typing import Any

from kit.chain_in_process import ChainInProcess
from kit.contract_calls import Contract, EventLog
from kit.contract_house import LOT, TEST_ARTEFACTS, ContractHouse
from kit.settlement_scene import DEPOSIT, PAYEE, PAYER, PAYER_SIGNER, STRANGER, Scene

from hansa.node.chain.escrow_artefact import read_artefact
from hansa.node.chain.evm_escrow import claim_words, config_words, split_words
from hansa.proto.documents import ChannelConfig
from hansa.proto.signing import SigningKey
from hansa.proto.splits import Split

HONEST, FEE_ON_TRANSFER, NO_RETURN, FALSE_RETURN, REENTRANT, SILENT_THIEF = range(6)


class EscrowBench(Scene):
    """A scene whose house is the contract, with its calls by hand."""

    def __init__(self, house: ContractHouse | None = None) -> None:
        self.escrow = house or ContractHouse(ChainInProcess())
        super().__init__(self.escrow)

    def do(self, key: SigningKey, name: str, *arguments: Any) -> bytes:
        """One transaction."""
        return self.escrow.do(key.address, name, *arguments).returned

    def open(
        self, splits: tuple[Split, ...] = (), *, deposit: int = DEPOSIT, minted: bool = True, **changes: Any
    ) -> ChannelConfig:
        """A channel that is open, with tokens that were made for it."""
        config = self.config(splits, **changes)
        if minted:
            self.escrow.mint(PAYER.address, deposit)
        self.do(PAYER, "open", config_words(config), split_words(splits), deposit)
        return config

    def claim_one(self, config: ChannelConfig, total: int, key: SigningKey = PAYER_SIGNER) -> None:
        """A voucher by the single claim."""
        voucher = self.voucher(config, total, key)
        self.do(STRANGER, "claim", config_words(config), total, voucher.document.statement, voucher.signature)

    def batch(self, *items: Any) -> list[int]:
        """The faults of a batch of claims or of raw items."""
        raw = [item if isinstance(item, tuple) else claim_words(item) for item in items]
        returned = self.do(STRANGER, "claimBatch", raw)
        return list(self.escrow.escrow.answer("claimBatch", returned))

    def payee_close(self, config: ChannelConfig, splits: tuple[Split, ...] = (), total: int = 0) -> None:
        """The payee ends the channel, with a last voucher if a total is given."""
        last: tuple[Any, ...] = (0, bytes(32), b"")
        if total:
            voucher = self.voucher(config, total)
            last = (total, voucher.document.statement, voucher.signature)
        self.do(PAYEE, "payeeClose", config_words(config), split_words(splits), *last)

    def cooperative_close(self, config: ChannelConfig, total: int) -> None:
        """Both end the channel."""
        self.do(STRANGER, "cooperativeClose", config_words(config), [], total, *self.both_signatures(config, total))

    def credit(self, account: bytes, token: bytes | None = None) -> int:
        """What an account could withdraw."""
        credited: int = self.escrow.ask("credit", token or self.escrow.token, account)
        return credited

    def withdraw(self, account: bytes, token: bytes | None = None) -> None:
        """Pay an account out."""
        self.do(STRANGER, "withdraw", token or self.escrow.token, account)


class HostileToken:
    """A token that does as it is told."""

    def __init__(self, bench: EscrowBench) -> None:
        self._bench = bench
        self._chain = bench.escrow.chain
        self.escrow_events: list[EventLog] = []
        self._calls = Contract(read_artefact(TEST_ARTEFACTS / "HostileToken.json"))
        self.at = self._chain.deploy(self._calls.creation())
        self.order("mint", PAYER.address, 10 * DEPOSIT)
        self.order("mint", STRANGER.address, 10 * DEPOSIT)
        for key in (PAYER, STRANGER):
            self._chain.send(key.address, self.at, self._calls.call("approve", bench.escrow.at, LOT))

    def become(self, account: bytes) -> "HostileToken":
        """The same code at an account that has a key, as EIP-7702 would put it there; that account sends no more."""
        self._chain.put_code(account, self._chain.code(self.at))
        self.at = account
        self.order("rebase", 10_000)  # its constructor did not run there
        return self

    def order(self, name: str, *arguments: Any) -> None:
        """Tell it something."""
        self._chain.send(STRANGER.address, self.at, self._calls.call(name, *arguments))

    def send(self, key: SigningKey, name: str, *arguments: Any) -> None:
        """Call it, as somebody; what the escrow tells meanwhile is kept."""
        outcome = self._chain.send(key.address, self.at, self._calls.call(name, *arguments))
        of_escrow = [log for log in outcome.logs if log[0] == self._bench.escrow.at]
        told = [self._bench.escrow.escrow.event(topics, data) for _, topics, data in of_escrow]
        self.escrow_events += [event for event in told if event is not None]

    def behave(self, manner: int) -> None:
        """Choose its manner."""
        self.order("behave", manner)

    def ask(self, name: str, *arguments: Any) -> Any:
        """Ask it something."""
        return self._calls.answer(name, self._chain.ask(self.at, self._calls.call(name, *arguments)))

    def balance(self, account: bytes) -> int:
        """What an account has of it."""
        balance: int = self.ask("balanceOf", account)
        return balance

    def reenter(self, name: str, *arguments: Any) -> None:
        """Call the escrow in the middle of every transfer."""
        self.order("reenter", self._bench.escrow.at, self._bench.escrow.escrow.call(name, *arguments))

    def got_in(self) -> bool:
        """Whether the call in the middle was let through."""
        return bool(self.ask("got_in"))


def permit_for(bench: EscrowBench, amount: int, deadline_s: int, key: SigningKey = PAYER) -> tuple[Any, ...]:
    """The signature of an EIP-2612 permit for the escrow: deadline, v, r, s."""
    from eth_account import Account
    from eth_account.messages import encode_typed_data

    coin, chain = bench.escrow.coin, bench.escrow.chain
    nonce = coin.answer("nonces", chain.ask(bench.escrow.token, coin.call("nonces", key.address)))
    fields = ("owner address", "spender address", "value uint256", "nonce uint256", "deadline uint256")
    message = encode_typed_data(
        {"name": "Test Token", "version": "1", "chainId": chain.chain_id, "verifyingContract": bench.escrow.token},
        {"Permit": [{"name": field.split()[0], "type": field.split()[1]} for field in fields]},
        {"owner": key.address, "spender": bench.escrow.at, "value": amount, "nonce": nonce, "deadline": deadline_s},
    )
    signed = Account.sign_message(message, key.secret())
    return deadline_s, signed.v, signed.r.to_bytes(32, "big"), signed.s.to_bytes(32, "big")
