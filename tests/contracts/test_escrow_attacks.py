"""What people, tokens and signers may try against the escrow, and what comes of it: nothing."""

from dataclasses import replace

import pytest

pytest.importorskip("pyrevm", reason="pyrevm, the EVM in this process, has no wheel for this Python")

from kit.chain_in_process import CHAIN_ID, DEPLOYER, ChainInProcess, text
from kit.contract_calls import Contract, Reverted
from kit.contract_house import TEST_ARTEFACTS, ContractHouse
from kit.escrow_bench import (
    FALSE_RETURN,
    FEE_ON_TRANSFER,
    HONEST,
    NO_RETURN,
    SILENT_THIEF,
    EscrowBench,
    HostileToken,
    permit_for,
)
from kit.settlement_scene import (
    DEPOSIT,
    OWNERS,
    PAYEE,
    PAYEE_SIGNER,
    PAYER,
    PAYER_SIGNER,
    PERIOD_S,
    ROYALTIES,
    STRANGER,
    twins,
)

from hansa.market.settlement import CLOSED, CLOSING, OPEN, UNSET, Refused
from hansa.node.chain.escrow_artefact import read_artefact
from hansa.node.chain.evm_escrow import claim_words, config_words, split_words
from hansa.proto.documents import channel_id, escrow_domain
from hansa.proto.keccak import keccak256
from hansa.proto.signing import SigningKey, sign
from hansa.proto.splits import Split, splits_hash

FEE = Split(account=OWNERS[0], bps=100)


@pytest.fixture
def bench() -> EscrowBench:
    return EscrowBench()


# ------------------------------------------------------------ who it is


def test_the_escrow_says_what_its_documents_are_signed_for(bench: EscrowBench) -> None:
    flags, name, version, chain_id, contract, salt, extensions = bench.escrow.ask("eip712Domain")
    domain = bench.escrow.domain
    assert (flags, name, version, chain_id) == (b"\x0f", domain.name, domain.version, domain.chain_id)
    assert (contract, salt, extensions) == ("0x" + bench.escrow.at.hex(), bytes(32), ())


def test_a_channels_id_is_the_digest_that_we_sign_with(bench: EscrowBench) -> None:
    config = bench.config(ROYALTIES)
    assert bench.escrow.ask("channelId", config_words(config)) == channel_id(bench.escrow.domain, config)


def test_opening_writes_down_all_that_is_needed_to_close(bench: EscrowBench) -> None:
    config = bench.open(ROYALTIES)
    (opened, _) = bench.escrow.logs[-1]
    told = {
        "payer": config.payer,
        "payee": config.payee,
        "payerSigner": config.payer_signer,
        "payeeSigner": config.payee_signer,
        "token": config.token,
    }
    for name, account in told.items():
        assert opened.values[name] == "0x" + account.hex()
    assert opened.values["channelId"] == bench.id(config)
    assert opened.values["challengePeriod"] == config.challenge_period
    assert (opened.values["splitsHash"], opened.values["salt"]) == (config.splits_hash, config.salt)


def test_single_credits_are_told_with_their_channel_and_sum_to_the_deposit(bench: EscrowBench) -> None:
    config = bench.open(ROYALTIES)
    bench.payee_close(config, ROYALTIES, 50_001)
    credited = [event.values for event, _ in bench.escrow.logs if event.name == "Credited"]
    assert sum(each["amount"] for each in credited) == DEPOSIT
    assert {each["channelId"] for each in credited} == {bench.id(config)}
    for each in credited:
        assert each["token"] == "0x" + bench.escrow.token.hex()
        assert bench.credit(bytes.fromhex(each["account"][2:])) == each["amount"]
    (closed, _) = bench.escrow.logs[-1]
    assert closed.values["refund"] == DEPOSIT - 50_001


def test_a_last_voucher_is_told_with_what_it_adds_to_what_was_claimed(bench: EscrowBench) -> None:
    config = bench.open()
    bench.claim_one(config, 300)
    bench.payee_close(config, (), 1_000)
    claimed = [event.values for event, _ in bench.escrow.logs if event.name == "Claimed"]
    assert [(each["cumulative"], each["paid"]) for each in claimed] == [(300, 300), (1_000, 700)]
    assert claimed[-1]["statement"] == bench.voucher(config, 1_000).document.statement


def test_a_withdrawal_is_told_with_its_token_its_account_and_its_amount(bench: EscrowBench) -> None:
    bench.payee_close(bench.open(), (), 77)
    bench.withdraw(PAYEE.address)
    (event, _) = bench.escrow.logs[-1]
    said = {"token": "0x" + bench.escrow.token.hex(), "account": "0x" + PAYEE.address.hex(), "amount": 77}
    assert (event.name, event.values) == ("Withdrawn", said)


# ------------------------------------------------------------ replay


def test_replay_on_another_chain_and_on_another_escrow_pays_nothing() -> None:
    here, beside, elsewhere = EscrowBench(), EscrowBench(), EscrowBench(ContractHouse(ChainInProcess(chain_id=1)))
    second = EscrowBench(ContractHouse(here.escrow.chain, here.escrow.token))
    assert beside.escrow.at == here.escrow.at == elsewhere.escrow.at != second.escrow.at
    config = here.open(token=here.escrow.token)
    for other in (elsewhere, second):
        other.escrow.mint(PAYER.address, DEPOSIT)
        other.do(PAYER, "open", config_words(config), [], DEPOSIT)
        assert other.batch(here.claim(config, 5)) == [3]
        with pytest.raises(Refused, match="not signed by the payer's signer"):
            other.do(PAYEE, "claim", config_words(config), 5, bytes(32), here.voucher(config, 5).signature)
        with pytest.raises(Refused, match="not signed by the payer's signer"):
            other.do(STRANGER, "cooperativeClose", config_words(config), [], 5, *here.both_signatures(config, 5))
    assert beside.id(config) == here.id(config) != elsewhere.id(config) != second.id(config)


def test_replay_after_the_chain_forked_pays_nothing_and_the_forks_own_vouchers_do() -> None:
    """The contract's code, with what its constructor wrote into it, stands on a chain with another id."""
    here = EscrowBench()
    fork = EscrowBench(ContractHouse(ChainInProcess(chain_id=CHAIN_ID + 1)))
    fork.escrow.chain.put_code(fork.escrow.at, here.escrow.chain.code(here.escrow.at))
    config = fork.config()
    fork.escrow.mint(PAYER.address, DEPOSIT)
    returned = fork.do(PAYER, "open", config_words(config), [], DEPOSIT)
    assert returned == channel_id(escrow_domain(CHAIN_ID + 1, fork.escrow.at), config)
    assert fork.batch(here.claim(config, 5)) == [3]
    assert fork.batch(fork.claim(config, 5)) == [0]


def test_replay_of_a_voucher_on_another_channel_pays_nothing(bench: EscrowBench) -> None:
    one, other = bench.open(), bench.open()
    voucher = bench.voucher(one, 5)
    with pytest.raises(Refused, match="not signed"):
        bench.do(PAYEE, "claim", config_words(other), 5, voucher.document.statement, voucher.signature)


def test_the_same_voucher_twice_and_a_changed_one_are_refused_by_the_single_claim(bench: EscrowBench) -> None:
    config = bench.open()
    bench.claim_one(config, 5)
    for total, why in ((5, "not above"), (4, "not above"), (DEPOSIT + 1, "above the deposit")):
        with pytest.raises(Refused, match=why):
            bench.claim_one(config, total)
    voucher = bench.voucher(config, 7)
    for total, statement in ((8, voucher.document.statement), (7, bytes(32))):
        with pytest.raises(Refused, match="not signed"):
            bench.do(PAYEE, "claim", config_words(config), total, statement, voucher.signature)
    bench.claim_one(config, DEPOSIT)
    assert bench.escrow.state(bench.id(config)).claimed == DEPOSIT


def test_a_claim_on_a_channel_that_is_unset_or_closed_is_refused(bench: EscrowBench) -> None:
    with pytest.raises(Refused, match="no open channel"):
        bench.claim_one(bench.config(), 1)
    config = bench.open()
    bench.payee_close(config)
    with pytest.raises(Refused, match="no open channel"):
        bench.claim_one(config, 1)


# ------------------------------------------------------------ signatures


def test_the_high_s_twin_and_other_spellings_of_v_are_refused_by_the_single_claim(bench: EscrowBench) -> None:
    config = bench.open()
    voucher = bench.voucher(config, 5)
    spelled = [*twins(voucher.signature).values(), voucher.signature[:64], voucher.signature + b"\0", b""]
    for each in spelled:
        with pytest.raises(Refused, match="not signed by the payer's signer"):
            bench.do(PAYEE, "claim", config_words(config), 5, voucher.document.statement, each)
        with pytest.raises(Refused, match="not signed by the payer's signer"):
            bench.do(PAYEE, "payeeClose", config_words(config), [], 5, voucher.document.statement, each)


def test_words_in_a_batch_that_are_no_bytes_of_a_signature_are_skipped(bench: EscrowBench) -> None:
    """A batch must not fail because of one item, whatever its words are."""
    config = bench.open()
    good = claim_words(bench.claim(config, 5))
    largest = 2**256 - 1
    bad = [
        (*good[:1], 2**128 + 5, *good[2:]),
        (*good[:1], largest, *good[2:]),
        (*good[:5], 2**128 + good[5]),
        (*good[:5], 256 + good[5]),
        (*good[:5], largest),
        (*good[:3], largest, *good[4:]),
        (*good[:4], largest, good[5]),
    ]
    assert bench.batch(*bad, good) == [2, 2, 3, 3, 3, 3, 3, 0]


def test_the_zero_address_signs_for_nobody(bench: EscrowBench) -> None:
    """A failed recovery answers zero: a channel with such a signer would pay anybody's bytes."""
    bench.escrow.mint(PAYER.address, DEPOSIT)
    for part, why in (("payer_signer", "no signer of the payer"), ("payee_signer", "no signer of the payee")):
        with pytest.raises(Refused, match=why):
            bench.do(PAYER, "open", config_words(bench.config(**{part: bytes(20)})), [], DEPOSIT)
    with pytest.raises(Refused, match="no payee"):
        bench.do(PAYER, "open", config_words(bench.config(payee=bytes(20))), [], DEPOSIT)


def test_no_document_passes_for_another_type(bench: EscrowBench) -> None:
    """Voucher, close and config have words in common; the type stands in every digest."""
    config = bench.open(payee_signer=PAYER_SIGNER.address)
    close = bench.close_signature(config, 5, PAYER_SIGNER)
    voucher = bench.voucher(config, 5)
    own = sign(bench.escrow.domain, config, PAYER_SIGNER).signature
    for signature in (close, own):
        with pytest.raises(Refused, match="not signed"):
            bench.do(PAYEE, "claim", config_words(config), 5, voucher.document.statement, signature)
        with pytest.raises(Refused, match="not signed"):
            bench.do(PAYEE, "payeeClose", config_words(config), [], 5, voucher.document.statement, signature)
    for signature in (voucher.signature, own):
        with pytest.raises(Refused, match="not signed by the payer's signer"):
            bench.do(PAYEE, "cooperativeClose", config_words(config), [], 5, signature, close)
        with pytest.raises(Refused, match="not signed by the payee's signer"):
            bench.do(PAYEE, "cooperativeClose", config_words(config), [], 5, close, signature)


def contract_signer(bench: EscrowBench, owner: SigningKey) -> tuple[Contract, bytes]:
    calls = Contract(read_artefact(TEST_ARTEFACTS / "ContractSigner.json"))
    return calls, bench.escrow.chain.deploy(calls.creation(owner.address))


def test_a_contract_signs_by_erc_1271_on_the_single_claim_only(bench: EscrowBench) -> None:
    calls, signer = contract_signer(bench, PAYER_SIGNER)
    config = bench.open(payer_signer=signer)
    voucher = bench.voucher(config, 5)
    for_contract = b"\x01" + voucher.signature
    for wrong in (voucher.signature, for_contract[1:] + b"\0", b"\x01" + bench.voucher(config, 6).signature):
        with pytest.raises(Refused):
            bench.do(PAYEE, "claim", config_words(config), 5, voucher.document.statement, wrong)
    bench.escrow.chain.send(STRANGER.address, signer, calls.call("turn", True))
    with pytest.raises(Refused, match="the payer's contract does not accept"):
        bench.do(PAYEE, "claim", config_words(config), 5, voucher.document.statement, for_contract)
    bench.escrow.chain.send(STRANGER.address, signer, calls.call("turn", False))
    with pytest.raises(Refused, match="not signed by the payer's signer"):
        bench.do(PAYEE, "payeeClose", config_words(config), [], 5, voucher.document.statement, for_contract)
    assert bench.batch(bench.claim(config, 5)) == [3]
    bench.do(PAYEE, "claim", config_words(config), 5, voucher.document.statement, for_contract)
    assert bench.escrow.state(bench.id(config)).claimed == 5
    with pytest.raises(Refused, match="not above"):
        bench.do(PAYEE, "claim", config_words(config), 5, voucher.document.statement, for_contract)
    bench.payee_close(config)
    assert bench.credit(PAYEE.address) == 5


def test_a_contracts_signature_is_at_most_1024_bytes_long(bench: EscrowBench) -> None:
    _, signer = contract_signer(bench, PAYER_SIGNER)
    config = config_words(bench.open(payer_signer=signer))
    with pytest.raises(Refused, match="not this contract's kind of signature"):
        bench.do(PAYEE, "claim", config, 5, bytes(32), bytes(1_024))
    with pytest.raises(Refused, match=r"^$"):
        bench.do(PAYEE, "claim", config, 5, bytes(32), bytes(1_025))


# ------------------------------------------------------------ opening


def test_double_open_and_a_reopened_id_are_refused(bench: EscrowBench) -> None:
    config = bench.open()
    bench.escrow.mint(PAYER.address, 3 * DEPOSIT)
    again = ("open", config_words(config), [], DEPOSIT)
    with pytest.raises(Refused, match="opened before"):
        bench.do(PAYER, *again)
    bench.do(PAYER, "requestClose", config_words(config))
    with pytest.raises(Refused, match="opened before"):
        bench.do(PAYER, *again)
    bench.payee_close(config)
    with pytest.raises(Refused, match="opened before"):
        bench.do(PAYER, *again)


def test_more_than_eight_splits_and_more_than_32_claims_do_not_decode(bench: EscrowBench) -> None:
    splits = tuple(Split(account=bytes([n]) * 20, bps=1) for n in range(1, 10))
    bench.escrow.mint(PAYER.address, DEPOSIT)
    with pytest.raises(Refused):
        bench.do(PAYER, "open", config_words(bench.config(splits)), split_words(splits), DEPOSIT)
    config = bench.open(minted=False)
    claims = [bench.claim(config, total) for total in range(1, 34)]
    with pytest.raises(Refused):
        bench.batch(*claims)
    assert bench.batch(*claims[:32]) == [0] * 32
    assert bench.batch() == []


def test_splits_over_the_whole_or_with_an_unknown_preimage_do_not_open(bench: EscrowBench) -> None:
    """Such a channel could pay more than it has, or nobody could ever close it."""
    bench.escrow.mint(PAYER.address, DEPOSIT)
    over = (Split(account=OWNERS[0], bps=10_000), Split(account=OWNERS[1], bps=1))
    with pytest.raises(Refused, match="more than the whole"):
        bench.do(PAYER, "open", config_words(bench.config(over)), split_words(over), DEPOSIT)
    for config in (bench.config(ROYALTIES), bench.config(splits_hash=b"\x05" * 32)):
        with pytest.raises(Refused, match="not the channel's splits"):
            bench.do(PAYER, "open", config_words(config), [], DEPOSIT)
    wrapping = (Split(account=OWNERS[0], bps=2**32 - 1),)
    with pytest.raises(Refused):
        bench.do(
            PAYER, "open", config_words(bench.config(wrapping)), [(OWNERS[0], 2**256 - 1), (OWNERS[1], 2)], DEPOSIT
        )


def test_a_split_may_be_the_lowest_account_that_there_is(bench: EscrowBench) -> None:
    lowest = (Split(account=(1).to_bytes(20, "big"), bps=1), Split(account=(2).to_bytes(20, "big"), bps=1))
    assert bench.escrow.state(bench.id(bench.open(lowest))).phase == OPEN


def test_a_token_that_is_no_contract_is_refused(bench: EscrowBench) -> None:
    with pytest.raises(Refused):
        bench.do(PAYER, "open", config_words(bench.config(token=STRANGER.address)), [], DEPOSIT)
    with pytest.raises(Refused):
        bench.do(
            PAYER,
            "openWithPermit",
            config_words(bench.config(token=STRANGER.address)),
            [],
            5,
            0,
            27,
            bytes(32),
            bytes(32),
        )


def with_permit(bench: EscrowBench, permit: tuple[object, ...], amount: int = DEPOSIT) -> bytes:
    config = bench.config(ROYALTIES)
    return bench.do(PAYER, "openWithPermit", config_words(config), split_words(ROYALTIES), amount, *permit)


def minted(bench: EscrowBench) -> None:
    coin = bench.escrow.coin
    bench.escrow.chain.send(PAYER.address, bench.escrow.token, coin.call("mint", PAYER.address, 9 * DEPOSIT))


def test_a_permit_opens_without_an_approval(bench: EscrowBench) -> None:
    minted(bench)
    id_ = with_permit(bench, permit_for(bench, DEPOSIT, bench.escrow.now_s() + 60))
    assert bench.escrow.state(id_).deposit == DEPOSIT == bench.escrow.balance(bench.escrow.at)


def test_a_front_run_permit_does_not_stop_the_opening(bench: EscrowBench) -> None:
    minted(bench)
    permit = permit_for(bench, DEPOSIT, bench.escrow.now_s() + 60)
    coin = bench.escrow.coin
    arguments = (PAYER.address, bench.escrow.at, DEPOSIT, *permit)
    bench.escrow.chain.send(STRANGER.address, bench.escrow.token, coin.call("permit", *arguments))
    assert bench.escrow.state(with_permit(bench, permit)).phase == OPEN


def test_a_permit_that_is_not_the_payers_opens_nothing(bench: EscrowBench) -> None:
    minted(bench)
    for permit, amount in (
        (permit_for(bench, DEPOSIT, bench.escrow.now_s() + 60, STRANGER), DEPOSIT),
        (permit_for(bench, DEPOSIT, bench.escrow.now_s() - 1), DEPOSIT),
        (permit_for(bench, DEPOSIT - 1, bench.escrow.now_s() + 60), DEPOSIT),
    ):
        with pytest.raises(Refused):
            with_permit(bench, permit, amount)
    assert bench.escrow.balance(bench.escrow.at) == 0


def test_somebody_elses_permit_opens_nothing_for_me(bench: EscrowBench) -> None:
    minted(bench)
    permit = permit_for(bench, DEPOSIT, bench.escrow.now_s() + 60)
    with pytest.raises(Refused, match="not the payer"):
        bench.do(STRANGER, "openWithPermit", config_words(bench.config()), [], DEPOSIT, *permit)
    with pytest.raises(Refused):
        bench.do(STRANGER, "openWithPermit", config_words(bench.config(payer=STRANGER.address)), [], DEPOSIT, *permit)


def test_a_payer_whose_account_delegates_to_code_opens_with_its_own_permit(bench: EscrowBench) -> None:
    """By EIP-7702 an account with a key runs code that anybody may call: the payer calls, and somebody else sends."""
    minted(bench)
    config = bench.config()
    permit = permit_for(bench, DEPOSIT, bench.escrow.now_s() + 60)
    account = hostile(bench).become(PAYER.address)
    account.reenter("openWithPermit", config_words(config), [], DEPOSIT, *permit)
    account.send(STRANGER, "transfer", STRANGER.address, 0)
    assert account.got_in()
    assert bench.escrow.state(bench.id(config)).deposit == DEPOSIT


# ------------------------------------------------------------ refusals, each with its own words


def refused(bench: EscrowBench, why: str, key: SigningKey, name: str, *arguments: object) -> None:
    """It is refused for this very reason: another one behind it would do as well, and nobody would miss this one."""
    with pytest.raises(Refused) as no:
        bench.do(key, name, *arguments)
    assert str(no.value) == why, f"{name}: {no.value}"


def test_what_cannot_be_opened_is_refused_for_what_is_wrong_with_it(bench: EscrowBench) -> None:
    bench.escrow.mint(PAYER.address, DEPOSIT)
    for changes, why in (
        ({"payer": STRANGER.address}, "not the payer"),
        ({"challenge_period": 899}, "the challenge period is too short"),
        ({"challenge_period": 30 * 86_400 + 1}, "the challenge period is too long"),
        ({"splits_hash": b"\x01" * 32}, "not the channel's splits"),
    ):
        refused(bench, why, PAYER, "open", config_words(bench.config(**changes)), [], DEPOSIT)
    refused(bench, "nothing is deposited", PAYER, "open", config_words(bench.config()), [], 0)
    assert bench.escrow.state(bench.id(bench.open(deposit=1))).deposit == 1
    low, high = (1).to_bytes(20, "big"), (2).to_bytes(20, "big")
    order = "the splits' accounts do not rise from above zero"
    for splits, why in (
        ([(low, 0)], "a split has no share"),
        ([(high, 1), (low, 1)], order),
        ([(low, 1), (low, 1)], order),
        ([(bytes(20), 1)], order),
        ([(low, 5_001), (high, 5_000)], "the splits are more than the whole"),
    ):
        refused(bench, why, PAYER, "open", config_words(bench.config()), splits, DEPOSIT)


def test_what_does_not_fit_a_channels_phase_is_refused_for_that(bench: EscrowBench) -> None:
    unset, closed, closing, is_open = bench.config(), bench.open(), bench.open(), bench.open()
    bench.payee_close(closed)
    bench.do(PAYER, "requestClose", config_words(closing))
    bench.escrow.mint(STRANGER.address, 5)
    neither = "the channel is neither open nor closing"
    for config in (unset, closed):
        words = config_words(config)
        refused(bench, neither, STRANGER, "settle", words, [])
        refused(bench, neither, PAYEE, "payeeClose", words, [], 0, bytes(32), b"")
        refused(bench, neither, STRANGER, "cooperativeClose", words, [], 0, *bench.both_signatures(config, 0))
    for config in (unset, closed, closing):
        refused(bench, "the channel is not open", STRANGER, "topUp", config_words(config), 5)
        refused(bench, "the channel is not open", PAYER, "requestClose", config_words(config))
    for config in (unset, closed, is_open):
        refused(bench, "the channel is not closing", STRANGER, "finalize", config_words(config), [])
    refused(bench, "the challenge period is not over", STRANGER, "finalize", config_words(closing), [])
    refused(bench, "there is no credit", STRANGER, "withdraw", bench.escrow.token, STRANGER.address)


def test_a_channel_does_not_end_below_what_was_settled_though_nobody_was_credited_for_it(bench: EscrowBench) -> None:
    """One unit in two shares is nothing for either: so nothing but the rule itself is in the way."""
    config = bench.open((FEE,))
    refused(bench, "nothing is to be settled", STRANGER, "settle", config_words(config), split_words((FEE,)))
    bench.claim_one(config, 1)
    bench.do(STRANGER, "settle", config_words(config), split_words((FEE,)))
    assert [bench.credit(each) for each in (FEE.account, PAYEE.address)] == [0, 0]
    refused(bench, "nothing is to be settled", STRANGER, "settle", config_words(config), split_words((FEE,)))
    for total, why in ((0, "below what was settled"), (DEPOSIT + 1, "above the deposit")):
        ends = (config_words(config), split_words((FEE,)), total, *bench.both_signatures(config, total))
        refused(bench, why, STRANGER, "cooperativeClose", *ends)
    assert bench.escrow.state(bench.id(config)).phase == OPEN


# ------------------------------------------------------------ tokens


def hostile(bench: EscrowBench) -> HostileToken:
    return HostileToken(bench)


def test_a_fee_on_transfer_token_is_refused(bench: EscrowBench) -> None:
    token = hostile(bench)
    config = bench.open(token=token.at, minted=False)
    token.behave(FEE_ON_TRANSFER)
    with pytest.raises(Refused, match="did not arrive in full"):
        bench.open(token=token.at, minted=False)
    with pytest.raises(Refused, match="did not arrive in full"):
        bench.do(STRANGER, "topUp", config_words(config), 1_000)
    assert bench.escrow.state(bench.id(config)).deposit == DEPOSIT == token.balance(bench.escrow.at)


@pytest.mark.parametrize("manner", [FALSE_RETURN, SILENT_THIEF])
def test_a_false_returning_token_and_one_that_moves_nothing_are_refused(bench: EscrowBench, manner: int) -> None:
    token = hostile(bench)
    config = bench.open(token=token.at, minted=False)
    token.behave(manner)
    with pytest.raises(Refused, match="the token did not"):
        bench.open(token=token.at, minted=False)
    with pytest.raises(Refused, match="the token did not"):
        bench.do(STRANGER, "topUp", config_words(config), 1_000)


def test_a_false_returning_token_leaves_the_credit_where_it_is(bench: EscrowBench) -> None:
    token = hostile(bench)
    config = bench.open(token=token.at, minted=False)
    bench.payee_close(config, (), 7)
    token.behave(FALSE_RETURN)
    with pytest.raises(Refused, match="the token did not transfer"):
        bench.withdraw(PAYEE.address, token.at)
    assert bench.credit(PAYEE.address, token.at) == 7
    token.behave(HONEST)
    bench.withdraw(PAYEE.address, token.at)
    assert (bench.credit(PAYEE.address, token.at), token.balance(PAYEE.address)) == (0, 7)


def test_a_no_return_token_works(bench: EscrowBench) -> None:
    token = hostile(bench)
    token.behave(NO_RETURN)
    config = bench.open(token=token.at, minted=False)
    bench.do(STRANGER, "topUp", config_words(config), 1_000)
    bench.payee_close(config, (), DEPOSIT + 1_000)
    bench.withdraw(PAYEE.address, token.at)
    assert token.balance(PAYEE.address) == DEPOSIT + 1_000


def test_a_rebasing_token_hurts_nobody_who_has_another(bench: EscrowBench) -> None:
    token = hostile(bench)
    mine, theirs = bench.open(token=token.at, minted=False), bench.open()
    token.order("rebase", 5_000)
    for config in (mine, theirs):
        bench.payee_close(config, (), DEPOSIT)
    bench.withdraw(PAYEE.address)
    assert bench.escrow.balance(PAYEE.address) == DEPOSIT
    with pytest.raises(Refused):
        bench.withdraw(PAYEE.address, token.at)
    assert bench.credit(PAYEE.address, token.at) == DEPOSIT
    token.order("rebase", 20_000)
    bench.withdraw(PAYEE.address, token.at)
    assert token.balance(PAYEE.address) == DEPOSIT
    with pytest.raises(Refused, match="no credit"):
        bench.withdraw(PAYEE.address, token.at)


def reentries(bench: EscrowBench, token: HostileToken) -> list[tuple[object, ...]]:
    """Every function of the escrow, each with arguments that would be good at another time."""
    live, closing, closable = (bench.open(token=token.at, minted=False) for _ in range(3))
    bench.claim_one(live, 5)
    for config in (closing, closable):
        bench.do(PAYER, "requestClose", config_words(config))
    bench.escrow.chain.pass_time(PERIOD_S)
    for_payee = bench.open(token=token.at, minted=False, payee=token.at)
    for_payer = bench.open(token=token.at, minted=False, payer_signer=token.at)
    own = bench.config(payer=token.at, token=token.at)
    token.order("mint", token.at, DEPOSIT)
    token.order("allow", token.at, bench.escrow.at, DEPOSIT)
    voucher = bench.voucher(live, 9)
    item = claim_words(bench.claim(live, 8))
    both = bench.both_signatures(closing, 0)
    credited = bench.open(token=token.at, minted=False)
    bench.payee_close(credited, (), 77)
    return [
        ("open", config_words(own), [], 5),
        ("openWithPermit", config_words(own), [], 5, 0, 27, bytes(32), bytes(32)),
        ("topUp", config_words(live), 5),
        ("claim", config_words(live), 9, voucher.document.statement, voucher.signature),
        ("claimBatch", [item]),
        ("settle", config_words(live), []),
        ("requestClose", config_words(for_payer)),
        ("finalize", config_words(closable), []),
        ("payeeClose", config_words(for_payee), [], 0, bytes(32), b""),
        ("cooperativeClose", config_words(closing), [], 0, *both),
        ("withdraw", token.at, PAYEE.address),
        ("credit", token.at, PAYEE.address),
        ("channel", bench.id(live)),
        ("channelId", config_words(live)),
        ("eip712Domain",),
    ]


def test_a_reentrant_token_gets_in_nowhere(bench: EscrowBench) -> None:
    token = hostile(bench)
    calls = reentries(bench, token)
    functions = {entry["name"] for entry in bench.escrow.escrow.artefact.abi if entry["type"] == "function"}
    assert {call[0] for call in calls} == functions
    for call in calls:
        token.reenter(*call)
        config = bench.open(token=token.at, minted=False, deposit=100)
        assert not token.got_in(), f"{call[0]} inside open"
        bench.do(STRANGER, "topUp", config_words(config), 100)
        assert not token.got_in(), f"{call[0]} inside topUp"
        bench.payee_close(config)
        bench.withdraw(PAYER.address, token.at)
        assert not token.got_in(), f"{call[0]} inside withdraw"
    token.behave(HONEST)
    bench.withdraw(PAYEE.address, token.at)
    assert token.balance(PAYEE.address) == 77


def test_a_reentrant_token_does_get_in_where_nobody_is_inside(bench: EscrowBench) -> None:
    """The calls of the test above are good ones: only the lock refuses them."""
    token = hostile(bench)
    for call in reentries(bench, token):
        name, *arguments = call
        if name == "openWithPermit":
            arguments[0] = config_words(bench.config(payer=token.at, token=token.at))
        token.reenter(str(name), *arguments)
        token.order("transfer", PAYEE.address, 0)
        assert token.got_in(), name


def through_a_contract(bench: EscrowBench, key: SigningKey, token: HostileToken, name: str, *arguments: object) -> bool:
    """Somebody calls a contract, and that calls the escrow: whether it was let in."""
    token.reenter(name, *arguments)
    token.send(key, "transfer", STRANGER.address, 0)
    return token.got_in()


def test_a_contract_that_somebody_calls_cannot_act_in_its_name(bench: EscrowBench) -> None:
    token = hostile(bench)
    config = bench.open()
    bench.escrow.mint(PAYER.address, 9 * DEPOSIT)
    for key, name, *arguments in (
        (PAYER, "open", config_words(bench.config()), [], 5),
        (PAYER, "openWithPermit", config_words(bench.config()), [], 5, 0, 27, bytes(32), bytes(32)),
        (PAYER, "openWithPermit", config_words(bench.config(payer=token.at)), [], 5, 0, 27, bytes(32), bytes(32)),
        (PAYER, "topUp", config_words(config), 5),
        (PAYER, "requestClose", config_words(config)),
        (PAYER_SIGNER, "requestClose", config_words(config)),
        (PAYEE, "payeeClose", config_words(config), [], 0, bytes(32), b""),
        (PAYEE_SIGNER, "payeeClose", config_words(config), [], 0, bytes(32), b""),
    ):
        assert not through_a_contract(bench, key, token, name, *arguments), name
    assert bench.escrow.balance(PAYER.address) == 9 * DEPOSIT


def test_events_name_the_contract_that_called_and_not_who_called_it(bench: EscrowBench) -> None:
    token = hostile(bench)
    config = bench.open(token=token.at, minted=False, payee=token.at)
    token.order("mint", token.at, DEPOSIT)
    token.order("allow", token.at, bench.escrow.at, DEPOSIT)
    assert through_a_contract(bench, PAYER, token, "topUp", config_words(config), 5)
    assert through_a_contract(bench, PAYEE, token, "payeeClose", config_words(config), [], 0, bytes(32), b"")
    told = {event.name: event.values for event in token.escrow_events}
    assert told["ToppedUp"]["account"] == told["Closed"]["account"] == "0x" + token.at.hex()


def test_a_blacklisted_royalty_owner_blocks_nobody_else(bench: EscrowBench) -> None:
    token = hostile(bench)
    token.order("blacklist", OWNERS[0], True)
    config = bench.open(ROYALTIES, token=token.at, minted=False)
    bench.claim_one(config, 100_000)
    bench.do(PAYER, "requestClose", config_words(config))
    bench.escrow.chain.pass_time(PERIOD_S)
    bench.do(STRANGER, "finalize", config_words(config), split_words(ROYALTIES))
    for account in (PAYEE.address, PAYER.address, *OWNERS[1:]):
        bench.withdraw(account, token.at)
    with pytest.raises(Refused):
        bench.withdraw(OWNERS[0], token.at)
    assert bench.credit(OWNERS[0], token.at) == 2_000 == token.balance(bench.escrow.at)


def test_decimals_are_not_the_escrows_business(bench: EscrowBench) -> None:
    """A million units are a million units, of a token with 6 decimals or with 18: who shows amounts has to know."""
    coin = bench.escrow.coin
    eighteen = EscrowBench(ContractHouse(bench.escrow.chain, bench.escrow.chain.deploy(coin.creation(18))))
    for each in (bench, eighteen):
        each.payee_close(each.open(), (), 999_999)
        each.withdraw(PAYEE.address)
        each.withdraw(PAYER.address)
        assert (each.escrow.balance(PAYEE.address), each.escrow.balance(PAYER.address)) == (999_999, 1)


def test_no_token_pays_for_another(bench: EscrowBench) -> None:
    token = hostile(bench)
    config = bench.open(token=token.at, minted=False)
    bench.open()
    bench.payee_close(config, (), DEPOSIT)
    with pytest.raises(Refused, match="no credit"):
        bench.withdraw(PAYEE.address)
    with pytest.raises(Refused, match="not open"):
        bench.do(STRANGER, "topUp", config_words(replace(config, token=bench.escrow.token)), 1)


# ------------------------------------------------------------ order of things


def test_front_running_one_voucher_reverts_neither_the_batch_nor_the_payees_close(bench: EscrowBench) -> None:
    one, other = bench.open(), bench.open()
    bench.claim_one(one, 5)
    assert bench.batch(bench.claim(one, 5), bench.claim(other, 6)) == [1, 0]
    skipped = next(event for event, _ in bench.escrow.logs if event.name == "ClaimSkipped")
    assert (skipped.values["channelId"], skipped.values["index"], skipped.values["fault"]) == (bench.id(one), 0, 1)
    bench.payee_close(one, (), 5)
    assert bench.credit(PAYEE.address) == 5


def test_a_voucher_above_the_deposit_is_not_partly_paid_and_so_not_burnt(bench: EscrowBench) -> None:
    """A partial payment would burn the claim: after the top-up the very same voucher pays in full."""
    config = bench.open()
    claim = bench.claim(config, DEPOSIT + 10)
    assert bench.batch(claim) == [2]
    with pytest.raises(Refused, match="above the deposit"):
        bench.payee_close(config, (), DEPOSIT + 10)
    bench.escrow.mint(STRANGER.address, 10)
    bench.do(STRANGER, "topUp", config_words(config), 10)
    assert bench.batch(claim) == [0]
    assert bench.escrow.state(bench.id(config)).claimed == DEPOSIT + 10


def test_a_close_storm_is_answered_in_one_batch(bench: EscrowBench) -> None:
    configs = [bench.open(deposit=1_000) for _ in range(32)]
    for config in configs:
        bench.do(PAYER_SIGNER, "requestClose", config_words(config))
    bench.escrow.chain.pass_time(PERIOD_S - 1)
    assert bench.batch(*[bench.claim(config, 900) for config in configs]) == [0] * 32
    bench.escrow.chain.pass_time(1)
    for config in configs:
        bench.do(STRANGER, "finalize", config_words(config), [])
    assert bench.credit(PAYEE.address) == 32 * 900
    assert bench.credit(PAYER.address) == 32 * 100


def test_asking_again_for_a_close_neither_hastens_nor_delays_it(bench: EscrowBench) -> None:
    config = bench.open()
    bench.do(PAYER, "requestClose", config_words(config))
    closable_at_s = bench.escrow.state(bench.id(config)).closable_at_s
    assert closable_at_s == bench.escrow.now_s() + PERIOD_S
    bench.escrow.chain.pass_time(PERIOD_S - 1)
    with pytest.raises(Refused, match="not open"):
        bench.do(PAYER, "requestClose", config_words(config))
    with pytest.raises(Refused, match="not over"):
        bench.do(PAYER, "finalize", config_words(config), [])
    bench.escrow.chain.pass_time(1)
    bench.do(PAYER, "finalize", config_words(config), [])
    assert bench.escrow.state(bench.id(config)).phase == CLOSED


def test_dust_top_ups_delay_no_close_and_cost_only_who_makes_them(bench: EscrowBench) -> None:
    config = bench.open()
    bench.escrow.mint(STRANGER.address, 100)
    for _ in range(20):
        bench.do(STRANGER, "topUp", config_words(config), 1)
    bench.do(PAYER, "requestClose", config_words(config))
    before = bench.escrow.state(bench.id(config))
    assert before.phase == CLOSING
    with pytest.raises(Refused, match="not open"):
        bench.do(STRANGER, "topUp", config_words(config), 1)
    assert bench.escrow.state(bench.id(config)) == before
    bench.payee_close(config, (), DEPOSIT + 20)
    assert bench.credit(PAYEE.address) == DEPOSIT + 20


def test_a_top_up_needs_money_and_an_amount(bench: EscrowBench) -> None:
    config = bench.open()
    with pytest.raises(Refused, match="nothing is deposited"):
        bench.do(STRANGER, "topUp", config_words(config), 0)
    with pytest.raises(Refused):
        bench.do(STRANGER, "topUp", config_words(config), 1)
    bench.escrow.mint(STRANGER.address, 2**128)
    with pytest.raises(Refused, match="too large"):
        bench.do(STRANGER, "topUp", config_words(config), 2**128 - DEPOSIT)
    bench.do(STRANGER, "topUp", config_words(config), 2**128 - 1 - DEPOSIT)
    assert bench.escrow.state(bench.id(config)).deposit == 2**128 - 1


def test_nobody_owns_the_escrow(bench: EscrowBench) -> None:
    """All that it can do is known, and none of it is for a privileged account: it has no storage for one either."""
    names = {entry["name"] for entry in bench.escrow.escrow.artefact.abi if entry["type"] == "function"}
    assert names == {
        *("open", "openWithPermit", "topUp", "claim", "claimBatch", "settle", "requestClose", "finalize"),
        *("payeeClose", "cooperativeClose", "withdraw", "credit", "channel", "channelId", "eip712Domain"),
    }
    assert bench.escrow.state(bytes(32)).phase == UNSET
    for name in ("open", "withdraw", "claimBatch"):
        with pytest.raises((Reverted, RuntimeError)):
            bench.escrow.chain.evm.message_call(
                text(DEPLOYER), text(bench.escrow.at), calldata=keccak256(name.encode())[:4], value=0
            )


def test_a_fee_is_a_split_like_any_other(bench: EscrowBench) -> None:
    config = bench.open((FEE,))
    assert config.splits_hash == splits_hash((FEE,))
    bench.do(PAYEE_SIGNER, "payeeClose", config_words(config), split_words((FEE,)), 0, bytes(32), b"")
    assert [bench.credit(each) for each in (FEE.account, PAYEE.address, PAYER.address)] == [0, 0, DEPOSIT]
    credited = [event.values["amount"] for event, _ in bench.escrow.logs if event.name == "Credited"]
    assert credited == [DEPOSIT]  # nobody is told of a credit of nothing
