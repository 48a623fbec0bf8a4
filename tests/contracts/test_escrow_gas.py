"""What each operation costs on a chain, beside the figures that it must not exceed.

Measured as the gas of the transaction's receipt on anvil (its newest rules: what calldata costs at least is in it),
shown by `pytest -s`. The token is `contracts/test/TestToken.vy`, an ordinary ERC-20. Where it matters whether an
account had a balance before, both are printed. A bound holds for the steady state: the escrow holds some of the token
and is approved without bound, and accounts that are paid have had credit in it before and not withdrawn it. Gas depends
on how many bytes of hashes and signatures happen to be zero, by a few dozen.
"""

from collections.abc import Iterator

import pytest
from kit.chain_on_anvil import ChainOnAnvil, anvil_chain
from kit.contract_house import ContractHouse
from kit.escrow_bench import EscrowBench, permit_for
from kit.settlement_scene import DEPOSIT, OWNERS, PAYEE, PAYER, ROYALTIES, STRANGER

from hansa.node.chain.escrow_artefact import escrow_code
from hansa.node.chain.evm_escrow import claim_words, config_words, split_words
from hansa.proto.documents import ChannelConfig
from hansa.proto.signing import SigningKey

pytestmark = pytest.mark.slow
HALF = DEPOSIT // 2


class Meter:
    """An escrow on anvil whose transactions are weighed."""

    def __init__(self, chain: ChainOnAnvil) -> None:
        self.bench = EscrowBench(ContractHouse(chain))
        self.figures: list[tuple[str, int, int | None]] = []

    def of(self, key: SigningKey, name: str, *arguments: object) -> int:
        """The gas of one call."""
        return self.bench.escrow.do(key.address, name, *arguments).gas

    def note(self, what: str, gas: int, bound: int | None = None) -> None:
        """Keep a figure, and the most that it may be."""
        self.figures.append((what, gas, bound))

    def funded(self) -> None:
        """Give the payer tokens, and let the escrow take some of them, not all."""
        self.bench.escrow.mint(PAYER.address, 1_000 * DEPOSIT)

    def opened(self, splits: tuple[object, ...] = (), **changes: object) -> ChannelConfig:
        """A channel that is open, with no figure."""
        return self.bench.open(splits, minted=False, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def meter() -> Iterator[Meter]:
    with anvil_chain() as chain:
        meter = Meter(chain)
        meter.funded()
        yield meter


def test_what_stands_at_the_escrows_address_is_exactly_the_artefact(meter: Meter) -> None:
    house = meter.bench.escrow
    assert house.chain.code(house.at) == escrow_code(house.chain.chain_id, house.at)


def weigh_opening(meter: Meter) -> None:
    bench = meter.bench
    coin, chain, token = bench.escrow.coin, bench.escrow.chain, bench.escrow.token
    for what, bound in (("open, the token's first deposit ever", 114_000), ("open with a bounded approval", None)):
        meter.note(what, meter.of(PAYER, "open", config_words(bench.config()), [], DEPOSIT), bound)
    chain.send(PAYER.address, token, coin.call("approve", bench.escrow.at, 2**256 - 1))
    meter.note("open", meter.of(PAYER, "open", config_words(bench.config()), [], DEPOSIT), 94_000)
    config = bench.config(ROYALTIES)
    meter.note("open with 3 splits", meter.of(PAYER, "open", config_words(config), split_words(ROYALTIES), DEPOSIT))
    buyer = SigningKey(b"\x57" * 32)
    chain.send(buyer.address, token, coin.call("mint", buyer.address, 9 * DEPOSIT))
    for what in ("open with permit, the account's first", "open with permit"):
        permit = permit_for(bench, DEPOSIT, bench.escrow.now_s() + 1_000, buyer)
        config = config_words(bench.config(payer=buyer.address))
        meter.note(what, meter.of(buyer, "openWithPermit", config, [], DEPOSIT, *permit), 124_000)
    meter.note("topUp", meter.of(PAYER, "topUp", config_words(meter.opened()), DEPOSIT))


def weigh_claims(meter: Meter) -> None:
    bench = meter.bench
    for what, total in (("claim, a channel's first", 5), ("claim", 9)):
        config = meter.opened()
        voucher = bench.voucher(config, total)
        gas = meter.of(STRANGER, "claim", config_words(config), total, voucher.document.statement, voucher.signature)
        meter.note(what, gas, 39_000)
    for number, bound in ((1, 44_000), (10, 19_800), (32, 18_000)):
        items = [claim_words(bench.claim(meter.opened(), HALF)) for _ in range(number)]
        gas = meter.of(STRANGER, "claimBatch", items)
        meter.note(f"claim in a batch of {number}, each", gas // number, bound)


def weigh_closing(meter: Meter) -> None:
    bench = meter.bench
    for state in ("new", "known"):
        config = meter.opened(ROYALTIES)
        bench.claim_one(config, HALF)
        gas = meter.of(PAYER, "requestClose", config_words(config))
        meter.note(f"requestClose ({state})", gas, 32_000)
        bench.escrow.chain.pass_time(config.challenge_period)
        gas = meter.of(STRANGER, "finalize", config_words(config), split_words(ROYALTIES))
        bound = 86_000 if state == "known" else None
        meter.note(f"finalize with 3 splits and a refund, accounts {state}", gas, bound)
    fresh = SigningKey(b"\x55" * 32)
    for what, payee, bound in (("new", fresh, None), ("known", PAYEE, 66_000)):
        config = meter.opened(payee=payee.address)
        voucher = bench.voucher(config, HALF)
        last = (HALF, voucher.document.statement, voucher.signature)
        gas = meter.of(payee, "payeeClose", config_words(config), [], *last)
        meter.note(f"payeeClose with a voucher and a refund, payee {what}", gas, bound)
    for what, payee in (("new", SigningKey(b"\x56" * 32)), ("known", PAYEE)):
        config = meter.opened(payee=payee.address)
        gas = meter.of(
            STRANGER, "cooperativeClose", config_words(config), [], HALF, *bench.both_signatures(config, HALF)
        )
        meter.note(f"cooperativeClose with a refund, payee {what}", gas, 84_000)


def weigh_the_rest(meter: Meter) -> None:
    bench = meter.bench
    config = meter.opened(ROYALTIES)
    bench.claim_one(config, HALF)
    meter.note("settle with 3 splits", meter.of(STRANGER, "settle", config_words(config), split_words(ROYALTIES)))
    meter.note(
        "withdraw, to an account without tokens", meter.of(STRANGER, "withdraw", bench.escrow.token, OWNERS[0]), 57_000
    )
    meter.note("withdraw", meter.of(STRANGER, "withdraw", bench.escrow.token, PAYER.address), 57_000)


def test_no_operation_costs_more_than_the_table(meter: Meter) -> None:
    weigh_opening(meter)
    weigh_claims(meter)
    weigh_closing(meter)
    weigh_the_rest(meter)
    print()
    for what, gas, bound in meter.figures:
        print(f"{what:<62} {gas:>8,} {'' if bound is None else f'at most {bound:,}'}")
    assert [(what, gas, bound) for what, gas, bound in meter.figures if bound is not None and gas > bound] == []
