"""What only the ledger has: limits within a credit line, and debts that whoever is owed acknowledges as paid."""

import pytest
from kit.ledger_house import LedgerHouse
from kit.settlement_scene import PAYEE, PAYER, PAYER_SIGNER, STRANGER, Scene

from hansa.market.settlement import Refused
from hansa.proto.signing import SigningKey

pytestmark = pytest.mark.trio

LIMIT = 1_000
OTHER_PAYER = SigningKey(b"\x31" * 32)


@pytest.fixture
async def house(tmp_path):
    made = LedgerHouse(tmp_path / "channels.sqlite")
    await made.fund(PAYER, LIMIT)
    yield made
    await made.held()
    made.channels.close()


@pytest.fixture
def scene(house):
    return Scene(house)


async def opened(scene, amount, payer=PAYER):
    """A channel within the line that is there."""
    config = scene.config(payer=payer.address)
    await (await scene.backend(payer)).open(config, (), amount)
    return config


async def ended(scene, config, total):
    """Claim so much and end the channel."""
    payee = await scene.backend(PAYEE)
    (result,) = await payee.claim([scene.claim(config, total, PAYER_SIGNER)])
    assert result.fault == ""
    await payee.payee_close(config, (), None)


async def test_the_channels_of_one_line_cannot_be_good_for_more_than_the_line_together(scene):
    await opened(scene, 600)
    with pytest.raises(Refused, match="the credit line leaves 400"):
        await opened(scene, 401)
    second = await opened(scene, 300)
    with pytest.raises(Refused, match="leaves 100"):
        await (await scene.backend(STRANGER)).top_up(second, 101)
    await (await scene.backend(STRANGER)).top_up(second, 100)


async def test_without_a_line_nothing_is_opened(tmp_path):
    house = LedgerHouse(tmp_path / "none.sqlite")
    with pytest.raises(Refused, match="the credit line leaves 0"):
        await opened(Scene(house), 1)
    house.channels.close()


async def test_what_is_owed_uses_the_line_until_it_is_acknowledged_as_paid(scene):
    config = await opened(scene, 600)
    await ended(scene, config, 500)
    with pytest.raises(Refused, match="leaves 500"):
        await opened(scene, 501)
    payee = await scene.backend(PAYEE)
    assert await payee.credit(PAYEE.address) == 500
    assert await payee.withdraw(PAYEE.address) == 500
    assert await payee.credit(PAYEE.address) == 0
    await opened(scene, 1_000)


async def test_only_whoever_is_owed_can_say_that_it_was_paid_and_once(scene):
    config = await opened(scene, 600)
    await ended(scene, config, 500)
    for somebody in (PAYER, STRANGER):
        with pytest.raises(Refused, match="only whoever is owed"):
            await (await scene.backend(somebody)).withdraw(PAYEE.address)
    payee = await scene.backend(PAYEE)
    await payee.withdraw(PAYEE.address)
    with pytest.raises(Refused, match="nothing is owed"):
        await payee.withdraw(PAYEE.address)
    last = [each async for each in payee.events(0)][-1]
    assert (last.kind, last.channel_id, last.account, last.amount) == ("withdrawn", bytes(32), PAYEE.address, 500)


async def test_one_debtor_does_not_use_another_ones_line(scene):
    first = await opened(scene, 1_000)
    second = await opened(scene, 1_000, OTHER_PAYER)
    await ended(scene, first, 900)
    await ended(scene, second, 200)
    with pytest.raises(Refused, match="leaves 100"):
        await opened(scene, 101)
    await opened(scene, 800, OTHER_PAYER)
    assert await (await scene.backend(PAYEE)).credit(PAYEE.address) == 1_100


async def test_a_restart_finds_channels_debts_and_history(scene, house):
    config = await opened(scene, 600)
    await ended(scene, config, 500)
    backend = await scene.backend(STRANGER)
    before = [each async for each in backend.events(0)], house.channels.books
    house.reopen()
    assert ([each async for each in backend.events(0)], house.channels.books) == before
    assert (await backend.state(scene.id(config))).phase == "closed"
