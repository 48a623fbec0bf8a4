"""Every backend of settlement does what the model specifies: the same suite for all of them."""

from dataclasses import replace

import pytest
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
    Scene,
    twins,
)

from hansa.market.settlement import (
    CLOSED,
    CLOSING,
    LONGEST_CHALLENGE_S,
    OPEN,
    SHORTEST_CHALLENGE_S,
    UNSET,
    ChannelState,
    Refused,
)
from hansa.proto.documents import ChannelConfig, escrow_domain
from hansa.proto.signing import SigningKey, sign
from hansa.proto.splits import WHOLE_BPS, Split, splits_hash

pytestmark = pytest.mark.trio


async def state_of(scene: Scene, config: ChannelConfig) -> ChannelState:
    return await (await scene.backend(STRANGER)).state(scene.id(config), final=False)


async def credits_of(scene: Scene, *accounts: bytes) -> list[int]:
    backend = await scene.backend(STRANGER)
    return [await backend.credit(account) for account in accounts]


async def counted(scene: Scene, config: ChannelConfig, total: int) -> None:
    """Claim a voucher that is good."""
    (result,) = await (await scene.backend(PAYEE)).claim([scene.claim(config, total)])
    assert result.fault == "", result


async def finalized(scene: Scene, config: ChannelConfig, splits: tuple[Split, ...] = ()) -> None:
    """Let the payer end a channel, the whole way."""
    await (await scene.backend(PAYER)).request_close(config)
    await scene.house.pass_time(config.challenge_period + 1)
    await (await scene.backend(PAYER)).finalize(config, splits)


def closed_at(total: int) -> ChannelState:
    return ChannelState(phase=CLOSED, deposit=total, claimed=total, settled=total)


async def test_a_backend_knows_whose_it_is_and_where_its_documents_are_signed_for(scene: Scene) -> None:
    backend = await scene.backend(PAYEE)
    assert backend.account == PAYEE.address
    assert backend.domain == scene.house.domain


async def test_a_channel_that_nobody_opened_is_unset(scene: Scene) -> None:
    assert await state_of(scene, scene.config()) == ChannelState(phase=UNSET)


async def test_an_opened_channel_has_its_deposit(scene: Scene) -> None:
    config = await scene.opened()
    assert await state_of(scene, config) == ChannelState(phase=OPEN, deposit=DEPOSIT)


async def test_only_its_payer_opens_a_channel(scene: Scene) -> None:
    config = scene.config()
    await scene.house.fund(STRANGER, DEPOSIT)
    with pytest.raises(Refused):
        await (await scene.backend(STRANGER)).open(config, (), DEPOSIT)
    assert (await state_of(scene, config)).phase == UNSET


async def test_a_channel_opens_once(scene: Scene) -> None:
    config = await scene.opened()
    await scene.house.fund(PAYER, DEPOSIT)
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).open(config, (), DEPOSIT)
    assert (await state_of(scene, config)).deposit == DEPOSIT


async def test_a_closed_channel_never_opens_again(scene: Scene) -> None:
    config = await scene.opened()
    await (await scene.backend(PAYEE)).payee_close(config, (), None)
    await scene.house.fund(PAYER, DEPOSIT)
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).open(config, (), DEPOSIT)
    assert await state_of(scene, config) == closed_at(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"payer_signer": bytes(20)},
        {"payee": bytes(20)},
        {"payee_signer": bytes(20)},
        {"challenge_period": SHORTEST_CHALLENGE_S - 1},
        {"challenge_period": LONGEST_CHALLENGE_S + 1},
        {"splits_hash": b"\x01" * 32},
    ],
)
async def test_a_config_that_could_not_work_is_not_opened(scene: Scene, wrong: dict[str, object]) -> None:
    await scene.house.fund(PAYER, DEPOSIT)
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).open(scene.config(**wrong), (), DEPOSIT)


@pytest.mark.parametrize("period_s", [SHORTEST_CHALLENGE_S, LONGEST_CHALLENGE_S])
async def test_the_shortest_and_the_longest_challenge_period_are_allowed(scene: Scene, period_s: int) -> None:
    config = await scene.opened(challenge_period=period_s)
    assert (await state_of(scene, config)).phase == OPEN


async def test_nothing_is_no_deposit(scene: Scene) -> None:
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).open(scene.config(), (), 0)
    config = await scene.opened()
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).top_up(config, 0)


A, B, C = OWNERS


@pytest.mark.parametrize(
    "splits",
    [
        (Split(account=A, bps=5_001), Split(account=B, bps=5_000)),
        (Split(account=A, bps=0),),
        (Split(account=B, bps=1), Split(account=A, bps=1)),
        (Split(account=A, bps=1), Split(account=A, bps=1)),
        (Split(account=bytes(20), bps=1),),
        tuple(Split(account=bytes([n]) * 20, bps=1) for n in range(1, 10)),
        (Split(account=A, bps=2**32 - 1), Split(account=B, bps=10_001)),
    ],
    ids=["over the whole", "empty share", "falling", "twice", "zero", "nine", "large"],
)
async def test_splits_that_break_their_rules_are_not_opened(scene: Scene, splits: tuple[Split, ...]) -> None:
    await scene.house.fund(PAYER, DEPOSIT)
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).open(scene.config(splits), splits, DEPOSIT)


async def test_the_splits_may_be_the_whole_and_eight(scene: Scene) -> None:
    accounts = [bytes([n]) * 20 for n in range(1, 9)]
    splits = tuple(Split(account=account, bps=1_250) for account in accounts)
    config = await scene.opened(splits)
    await counted(scene, config, 801)
    await (await scene.backend(PAYEE)).payee_close(config, splits, None)
    assert await credits_of(scene, *accounts, PAYEE.address) == [100] * 8 + [1]


async def test_another_preimage_of_the_splits_settles_nothing(scene: Scene) -> None:
    config = await scene.opened(ROYALTIES)
    await counted(scene, config, 1_000)
    signatures = scene.both_signatures(config, 1_000)
    payee = await scene.backend(PAYEE)
    for splits in ((), ROYALTIES[:2], ROYALTIES[::-1], (*ROYALTIES[:2], replace(ROYALTIES[2], bps=999))):
        with pytest.raises(Refused):
            await payee.settle(config, splits)
        with pytest.raises(Refused):
            await payee.payee_close(config, splits, None)
        with pytest.raises(Refused):
            await payee.cooperative_close(config, splits, 1_000, *signatures)
    await (await scene.backend(PAYER)).request_close(config)
    await scene.house.pass_time(PERIOD_S + 1)
    with pytest.raises(Refused):
        await payee.finalize(config, ())
    assert await credits_of(scene, PAYEE.address, *OWNERS) == [0, 0, 0, 0]


async def test_anyone_may_add_to_an_open_channel_and_to_no_other(scene: Scene) -> None:
    config = await scene.opened()
    await scene.house.fund(STRANGER, 100)
    stranger = await scene.backend(STRANGER)
    await stranger.top_up(config, 40)
    assert (await state_of(scene, config)).deposit == DEPOSIT + 40
    with pytest.raises(Refused):
        await stranger.top_up(scene.config(), 1)
    await (await scene.backend(PAYER)).request_close(config)
    with pytest.raises(Refused):
        await stranger.top_up(config, 1)
    await (await scene.backend(PAYEE)).payee_close(config, (), None)
    with pytest.raises(Refused):
        await stranger.top_up(config, 1)


async def test_a_top_up_keeps_what_was_claimed(scene: Scene) -> None:
    config = await scene.opened()
    await counted(scene, config, DEPOSIT)
    await scene.house.fund(PAYER, 5)
    await (await scene.backend(PAYER)).top_up(config, 5)
    assert await state_of(scene, config) == ChannelState(phase=OPEN, deposit=DEPOSIT + 5, claimed=DEPOSIT)
    await counted(scene, config, DEPOSIT + 5)


async def test_a_claim_raises_what_was_claimed_by_anyones_hand(scene: Scene) -> None:
    config = await scene.opened()
    stranger = await scene.backend(STRANGER)
    (first,) = await stranger.claim([scene.claim(config, 10)])
    (second,) = await stranger.claim([scene.claim(config, DEPOSIT)])
    assert (first.paid, first.fault, second.paid, second.fault) == (10, "", DEPOSIT - 10, "")
    assert first.channel_id == scene.id(config)
    assert (await state_of(scene, config)).claimed == DEPOSIT


async def test_a_claim_credits_nobody_before_it_is_settled(scene: Scene) -> None:
    config = await scene.opened()
    await counted(scene, config, 10)
    assert await credits_of(scene, PAYEE.address, PAYER.address) == [0, 0]


async def test_the_same_voucher_twice_and_a_lower_one_pay_nothing(scene: Scene) -> None:
    config = await scene.opened()
    await counted(scene, config, 10)
    results = await (await scene.backend(PAYEE)).claim([scene.claim(config, 10), scene.claim(config, 9)])
    assert all(result.fault and result.paid == 0 for result in results)
    assert (await state_of(scene, config)).claimed == 10


async def test_a_voucher_above_the_deposit_pays_nothing_and_the_one_at_it_all(scene: Scene) -> None:
    config = await scene.opened()
    payee = await scene.backend(PAYEE)
    (above,) = await payee.claim([scene.claim(config, DEPOSIT + 1)])
    assert above.fault
    assert (await state_of(scene, config)).claimed == 0
    await counted(scene, config, DEPOSIT)


async def test_one_bad_voucher_keeps_no_other_back(scene: Scene) -> None:
    """So nobody can make a batch fail by bringing one of its vouchers first."""
    good, front_run, other = await scene.opened(), await scene.opened(), await scene.opened()
    unknown = scene.config()
    await (await scene.backend(STRANGER)).claim([scene.claim(front_run, 7)])
    results = await (await scene.backend(PAYEE)).claim(
        [
            scene.claim(front_run, 7),
            scene.claim(unknown, 1),
            scene.claim(good, 5),
            scene.claim(good, DEPOSIT + 1),
            scene.claim(good, 6, STRANGER),
            scene.claim(good, 8),
            scene.claim(other, 0),
            scene.claim(other, 3),
        ]
    )
    assert [result.paid for result in results] == [0, 0, 5, 0, 0, 3, 0, 3]
    assert [bool(result.fault) for result in results] == [True, True, False, True, True, False, True, False]


async def test_only_the_payers_signer_signs_vouchers(scene: Scene) -> None:
    config = await scene.opened()
    payee = await scene.backend(PAYEE)
    for key in (PAYER, PAYEE, PAYEE_SIGNER, STRANGER):
        (result,) = await payee.claim([scene.claim(config, 5, key)])
        assert result.fault


async def test_a_voucher_for_another_channel_chain_or_escrow_is_worth_nothing(scene: Scene) -> None:
    config, other = await scene.opened(), await scene.opened()
    payee = await scene.backend(PAYEE)
    moved = replace(scene.claim(other, 5), config=config)
    domain = scene.house.domain
    elsewhere = [
        escrow_domain(1, domain.verifying_contract),
        escrow_domain(31337, b"\x99" * 20),
        replace(domain, name="HansaOther"),
        replace(domain, version="2"),
    ]
    voucher = scene.voucher(config, 5).document
    replayed = [replace(moved, voucher=sign(each, voucher, PAYER_SIGNER)) for each in elsewhere if each != domain]
    results = await payee.claim([moved, *replayed])
    assert all(result.fault for result in results)
    assert (await state_of(scene, config)).claimed == 0


async def test_only_one_spelling_of_a_signature_counts(scene: Scene) -> None:
    config = await scene.opened()
    claim = scene.claim(config, 5)
    spelled = [
        replace(claim, voucher=replace(claim.voucher, signature=each))
        for each in twins(claim.voucher.signature).values()
    ]
    results = await (await scene.backend(PAYEE)).claim(spelled)
    assert all(result.fault for result in results)
    payer_signature, payee_signature = scene.both_signatures(config, 5)
    payee = await scene.backend(PAYEE)
    for each in twins(payer_signature).values():
        with pytest.raises(Refused):
            await payee.cooperative_close(config, (), 5, each, payee_signature)
    for each in twins(payee_signature).values():
        with pytest.raises(Refused):
            await payee.cooperative_close(config, (), 5, payer_signature, each)
    for each in twins(claim.voucher.signature).values():
        with pytest.raises(Refused):
            await payee.payee_close(config, (), replace(claim.voucher, signature=each))
    assert await state_of(scene, config) == ChannelState(phase=OPEN, deposit=DEPOSIT)


async def test_a_voucher_is_no_close_and_a_close_no_voucher(scene: Scene) -> None:
    config = await scene.opened(payee_signer=PAYER_SIGNER.address)
    payee = await scene.backend(PAYEE)
    close = scene.close_signature(config, 5, PAYER_SIGNER)
    claim = scene.claim(config, 5)
    (result,) = await payee.claim([replace(claim, voucher=replace(claim.voucher, signature=close))])
    assert result.fault
    with pytest.raises(Refused):
        await payee.cooperative_close(config, (), 5, claim.voucher.signature, claim.voucher.signature)
    await payee.cooperative_close(config, (), 5, close, close)


async def test_settling_credits_payee_and_splits_and_leaves_the_rest_waiting(scene: Scene) -> None:
    config = await scene.opened(ROYALTIES)
    await counted(scene, config, 999)
    stranger = await scene.backend(STRANGER)
    await stranger.settle(config, ROYALTIES)
    assert (await state_of(scene, config)).settled == 999
    assert await credits_of(scene, *OWNERS, PAYEE.address) == [19, 33, 99, 845]
    with pytest.raises(Refused):
        await stranger.settle(config, ROYALTIES)


async def test_what_waited_is_the_payees_at_the_end(scene: Scene) -> None:
    config = await scene.opened(ROYALTIES)
    await counted(scene, config, 999)
    payee = await scene.backend(PAYEE)
    await payee.settle(config, ROYALTIES)
    await payee.payee_close(config, ROYALTIES, None)
    assert await credits_of(scene, *OWNERS, PAYEE.address) == [19, 33, 99, 848]


async def test_nothing_is_settled_on_a_channel_that_is_unset_or_closed(scene: Scene) -> None:
    payee = await scene.backend(PAYEE)
    with pytest.raises(Refused):
        await payee.settle(scene.config(), ())
    config = await scene.opened()
    with pytest.raises(Refused):
        await payee.settle(config, ())
    await counted(scene, config, 7)
    await payee.payee_close(config, (), None)
    with pytest.raises(Refused):
        await payee.settle(config, ())


async def test_how_a_total_is_cut_changes_nobodys_part(scene: Scene) -> None:
    """A royalty cannot be skimmed by many small claims whose shares round to nothing."""
    halves = (Split(account=A, bps=5_000), Split(account=B, bps=5_000))
    payee = await scene.backend(PAYEE)
    config = await scene.opened(halves)
    for total in (1, 2, 3, 5, 8, 9):
        await counted(scene, config, total)
        await payee.settle(config, halves)
        assert await credits_of(scene, A, B, PAYEE.address) == [total // 2, total // 2, 0]
    await payee.payee_close(config, halves, None)
    assert await credits_of(scene, A, B, PAYEE.address) == [4, 4, 1]


async def test_a_close_is_asked_for_by_the_payer_or_its_signer_once(scene: Scene) -> None:
    for key in (PAYER, PAYER_SIGNER):
        config = await scene.opened()
        for other in (PAYEE, PAYEE_SIGNER, STRANGER):
            with pytest.raises(Refused):
                await (await scene.backend(other)).request_close(config)
        before_s = scene.house.now_s()
        await (await scene.backend(key)).request_close(config)
        state = await state_of(scene, config)
        assert state.phase == CLOSING
        assert before_s + PERIOD_S <= state.closable_at_s <= scene.house.now_s() + PERIOD_S
        await scene.house.pass_time(10)
        with pytest.raises(Refused):
            await (await scene.backend(key)).request_close(config)
        assert await state_of(scene, config) == state
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).request_close(scene.config())


async def test_a_closing_channel_ends_after_its_period_and_not_before(scene: Scene) -> None:
    config = await scene.opened()
    payer = await scene.backend(PAYER)
    with pytest.raises(Refused):
        await payer.finalize(config, ())
    await payer.request_close(config)
    await scene.house.pass_time(PERIOD_S - 60)
    with pytest.raises(Refused):
        await payer.finalize(config, ())
    await scene.house.pass_time(60)
    await (await scene.backend(STRANGER)).finalize(config, ())
    assert await state_of(scene, config) == closed_at(0)
    assert await credits_of(scene, PAYER.address) == [DEPOSIT if scene.house.holds_deposits else 0]
    with pytest.raises(Refused):
        await payer.finalize(config, ())


async def test_a_stale_voucher_at_the_close_is_answered_by_the_best_one_inside_the_window(scene: Scene) -> None:
    config = await scene.opened(ROYALTIES)
    await counted(scene, config, 100)
    await (await scene.backend(PAYER)).request_close(config)
    await scene.house.pass_time(PERIOD_S - 60)
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).finalize(config, ROYALTIES)
    await counted(scene, config, 60_000)
    await scene.house.pass_time(61)
    await (await scene.backend(PAYER)).finalize(config, ROYALTIES)
    assert await state_of(scene, config) == closed_at(60_000)
    assert await credits_of(scene, *OWNERS, PAYEE.address) == [1_200, 1_998, 6_000, 50_802]


async def test_closing_channels_are_settled_too_and_keep_their_end(scene: Scene) -> None:
    config = await scene.opened()
    await (await scene.backend(PAYER)).request_close(config)
    before = await state_of(scene, config)
    await counted(scene, config, 50)
    await (await scene.backend(PAYEE)).settle(config, ())
    assert await state_of(scene, config) == replace(before, claimed=50, settled=50)


async def test_the_payee_or_its_signer_ends_a_channel_at_once(scene: Scene) -> None:
    for key in (PAYEE, PAYEE_SIGNER):
        config = await scene.opened()
        await counted(scene, config, 30)
        for other in (PAYER, PAYER_SIGNER, STRANGER):
            with pytest.raises(Refused):
                await (await scene.backend(other)).payee_close(config, (), None)
        await (await scene.backend(key)).payee_close(config, (), None)
        assert await state_of(scene, config) == closed_at(30)
        with pytest.raises(Refused):
            await (await scene.backend(key)).payee_close(config, (), None)
    assert await credits_of(scene, PAYEE.address) == [60]
    with pytest.raises(Refused):
        await (await scene.backend(PAYEE)).payee_close(scene.config(), (), None)


async def test_the_payee_closes_with_a_last_voucher_also_while_the_channel_is_closing(scene: Scene) -> None:
    config = await scene.opened()
    await counted(scene, config, 30)
    await (await scene.backend(PAYER)).request_close(config)
    await (await scene.backend(PAYEE)).payee_close(config, (), scene.voucher(config, DEPOSIT))
    assert await state_of(scene, config) == closed_at(DEPOSIT)
    assert await credits_of(scene, PAYEE.address, PAYER.address) == [DEPOSIT, 0]


async def test_a_last_voucher_that_somebody_claimed_first_does_not_stop_the_payees_close(scene: Scene) -> None:
    config = await scene.opened()
    await (await scene.backend(STRANGER)).claim([scene.claim(config, 30)])
    await (await scene.backend(PAYEE)).payee_close(config, (), scene.voucher(config, 30))
    assert await state_of(scene, config) == closed_at(30)


async def test_a_last_voucher_that_is_no_good_stops_the_payees_close(scene: Scene) -> None:
    config, other = await scene.opened(), await scene.opened()
    payee = await scene.backend(PAYEE)
    for bad in (scene.voucher(config, DEPOSIT + 1), scene.voucher(config, 5, STRANGER), scene.voucher(other, 5)):
        with pytest.raises(Refused):
            await payee.payee_close(config, (), bad)
    assert await state_of(scene, config) == ChannelState(phase=OPEN, deposit=DEPOSIT)


@pytest.mark.parametrize("total", [20, 30, DEPOSIT])
async def test_both_together_end_a_channel_at_any_total_from_what_was_settled_to_the_deposit(
    scene: Scene, total: int
) -> None:
    config = await scene.opened()
    await counted(scene, config, 20)
    await (await scene.backend(PAYEE)).settle(config, ())
    await counted(scene, config, 40)
    await (await scene.backend(STRANGER)).cooperative_close(config, (), total, *scene.both_signatures(config, total))
    assert await state_of(scene, config) == closed_at(total)
    refund = DEPOSIT - total if scene.house.holds_deposits else 0
    assert await credits_of(scene, PAYEE.address, PAYER.address) == [total, refund]


async def test_both_together_cannot_go_below_what_was_settled_nor_above_the_deposit(scene: Scene) -> None:
    config = await scene.opened()
    await counted(scene, config, 20)
    payee = await scene.backend(PAYEE)
    await payee.settle(config, ())
    for total in (0, 19, DEPOSIT + 1):
        with pytest.raises(Refused):
            await payee.cooperative_close(config, (), total, *scene.both_signatures(config, total))
    with pytest.raises(Refused):
        await payee.cooperative_close(scene.config(), (), 0, *scene.both_signatures(scene.config(), 0))


async def test_a_close_needs_the_word_of_both_signers_for_this_channel_and_this_total(scene: Scene) -> None:
    config, other = await scene.opened(), await scene.opened()
    payee = await scene.backend(PAYEE)
    ours, theirs = scene.both_signatures(config, 30)
    lower, elsewhere = scene.both_signatures(config, 29), scene.both_signatures(other, 30)
    by_accounts = [scene.close_signature(config, 30, key) for key in (PAYER, PAYEE)]
    for pair in (
        (theirs, ours),
        (ours, ours),
        (theirs, theirs),
        (ours, lower[1]),
        (lower[0], theirs),
        (ours, elsewhere[1]),
        (elsewhere[0], theirs),
        (ours, by_accounts[1]),
        (by_accounts[0], theirs),
        (bytes(65), bytes(65)),
    ):
        with pytest.raises(Refused):
            await payee.cooperative_close(config, (), 30, *pair)
    await payee.cooperative_close(config, (), 30, ours, theirs)
    with pytest.raises(Refused):
        await payee.cooperative_close(config, (), 30, ours, theirs)


async def test_a_closed_channel_pays_no_voucher(scene: Scene) -> None:
    config = await scene.opened()
    await counted(scene, config, 30)
    await finalized(scene, config)
    results = await (await scene.backend(PAYEE)).claim(
        [scene.claim(config, total) for total in (0, 1, 30, 31, DEPOSIT)]
    )
    assert all(result.fault for result in results)
    assert await state_of(scene, config) == closed_at(30)
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).request_close(config)


async def test_money_leaves_by_withdrawal_only_to_its_owner_and_once(scene: Scene) -> None:
    if not scene.house.holds_deposits:
        pytest.skip("this backend holds no money that could be withdrawn")
    config = await scene.opened(ROYALTIES)
    await counted(scene, config, 100_000)
    before = await scene.house.purse(PAYEE.address)
    await (await scene.backend(PAYEE)).payee_close(config, ROYALTIES, None)
    assert await scene.house.purse(PAYEE.address) == before
    assert await scene.house.held() == DEPOSIT
    stranger = await scene.backend(STRANGER)
    assert await stranger.withdraw(PAYEE.address) == 84_670
    assert await scene.house.purse(PAYEE.address) == before + 84_670
    assert await scene.house.purse(STRANGER.address) == 0
    assert await scene.house.held() == DEPOSIT - 84_670
    assert await credits_of(scene, PAYEE.address) == [0]
    with pytest.raises(Refused):
        await stranger.withdraw(PAYEE.address)
    for account in (*OWNERS, PAYER.address):
        await stranger.withdraw(account)
    assert await scene.house.held() == 0


async def test_credits_of_many_channels_add_up(scene: Scene) -> None:
    for total in (1, 2, 3):
        config = await scene.opened()
        await counted(scene, config, total)
        await finalized(scene, config)
    assert await credits_of(scene, PAYEE.address) == [6]


async def test_one_account_may_be_payer_payee_and_a_split(scene: Scene) -> None:
    splits = (Split(account=PAYEE.address, bps=3_000),)
    config = await scene.opened(splits, payee=PAYEE.address)
    await counted(scene, config, 101)
    await (await scene.backend(PAYEE)).payee_close(config, splits, None)
    assert await credits_of(scene, PAYEE.address) == [101]


async def test_the_history_tells_every_step_with_its_amount(scene: Scene) -> None:
    start = [each async for each in (await scene.backend(PAYEE)).events(0)]
    cursor = start[-1].cursor if start else 0
    config = await scene.opened()
    await scene.house.fund(PAYER, 10)
    await (await scene.backend(PAYER)).top_up(config, 10)
    await counted(scene, config, 40)
    await (await scene.backend(PAYEE)).settle(config, ())
    await (await scene.backend(PAYER)).request_close(config)
    await (await scene.backend(PAYEE)).payee_close(config, (), scene.voucher(config, 50))
    backend = await scene.backend(PAYEE)
    told = [each async for each in backend.events(cursor)]
    id_ = scene.id(config)
    assert [(each.kind, each.amount) for each in told if each.channel_id == id_] == [
        ("opened", DEPOSIT),
        ("topped-up", DEPOSIT + 10),
        ("claimed", 40),
        ("settled", 40),
        ("close-requested", 0),
        ("claimed", 50),
        ("closed", 50),
    ]
    accounts = {each.kind: each.account for each in told if each.channel_id == id_}
    assert accounts["opened"] == accounts["topped-up"] == PAYER.address
    assert accounts["closed"] == PAYEE.address
    assert [each.cursor for each in told] == sorted({each.cursor for each in told})
    assert not any(each.retracted for each in told)
    assert [each async for each in backend.events(told[2].cursor)] == told[3:]


async def test_a_withdrawal_is_told_with_its_account(scene: Scene) -> None:
    if not scene.house.holds_deposits:
        pytest.skip("this backend holds no money that could be withdrawn")
    config = await scene.opened()
    await counted(scene, config, 40)
    backend = await scene.backend(PAYEE)
    await backend.payee_close(config, (), None)
    await backend.withdraw(PAYEE.address)
    last = [each async for each in backend.events(0)][-1]
    assert (last.kind, last.channel_id, last.account, last.amount) == ("withdrawn", bytes(32), PAYEE.address, 40)


async def test_shares_of_any_splits_and_any_cuts_sum_to_what_was_claimed(scene: Scene) -> None:
    for shares, cuts in (
        ((1, 9_999), (1, 2, 3)),
        ((3_333, 3_333, 3_334), (7, 11, 9_999)),
        ((9_999,), (10_000, 10_001)),
    ):
        accounts = [SigningKey(bytes([200 + n]) * 32).address for n in range(len(shares))]
        splits = tuple(Split(account=each, bps=bps) for each, bps in zip(sorted(accounts), shares, strict=True))
        config = await scene.opened(splits)
        everybody = [split.account for split in splits] + [PAYEE.address]
        before = await credits_of(scene, *everybody)
        payee = await scene.backend(PAYEE)
        for total in cuts:
            await counted(scene, config, total)
            await payee.settle(config, splits)
        await payee.payee_close(config, splits, None)
        after = await credits_of(scene, *everybody)
        gained = [now - then for now, then in zip(after, before, strict=True)]
        floors = [cuts[-1] * split.bps // WHOLE_BPS for split in splits]
        assert gained == [*floors, cuts[-1] - sum(floors)]


async def test_the_hash_of_splits_stands_for_their_order_accounts_and_shares(scene: Scene) -> None:
    other = (replace(ROYALTIES[0], bps=201), *ROYALTIES[1:])
    assert splits_hash(other) != splits_hash(ROYALTIES)
    await scene.house.fund(PAYER, DEPOSIT)
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).open(scene.config(ROYALTIES), other, DEPOSIT)


async def test_the_largest_amounts_do_not_overflow(scene: Scene) -> None:
    largest = 2**128 - 1
    config = await scene.opened(ROYALTIES, deposit=largest)
    await scene.house.fund(PAYER, 1)
    with pytest.raises(Refused):
        await (await scene.backend(PAYER)).top_up(config, 1)
    await counted(scene, config, largest - 1)
    await (await scene.backend(PAYEE)).settle(config, ROYALTIES)
    await (await scene.backend(PAYEE)).payee_close(config, ROYALTIES, scene.voucher(config, largest))
    parts = [largest * split.bps // WHOLE_BPS for split in ROYALTIES]
    assert await credits_of(scene, *OWNERS, PAYEE.address) == [*parts, largest - sum(parts)]
