"""The buyer's word that a channel ends and the provider's last receipt cross on their way: both books say one sum."""

import pytest
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.proto import messages
from hansa.scheduler import run

MINUTE_MS = 60_000


def market():
    """A run of which the first receipt is paid. Gives its lease."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1, max_unpaid=10**9, voucher_timeout_ms=5_000)
    made.submit(BUYER, of=spec(shards=1, budget=10**8, retries=0))
    made.tender(BUYER, (PROVIDER,), shards=(0,))
    (lease,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    work(made, lease, 1)
    return made, lease


def work(made, lease, step):
    made.now_ms += 2_000
    made.take(PROVIDER, run.RunProgressed(run=lease, step=step, metrics=(), at_ms=made.now_ms))


def books(made):
    """What the buyer owes or paid, and what the provider earned."""
    buyer, provider = made.engines[BUYER].state.ledger, made.engines[PROVIDER].state.ledger
    owed = -buyer.balance(f"owed:{PROVIDER.hex()}") - buyer.balance(f"paid:{PROVIDER.hex()}")
    return owed, -provider.total("earned:")


def channels_left(made):
    return len(made.engines[BUYER].state.paying.live), len(made.engines[PROVIDER].state.earning.live)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_buyer_that_pays_for_a_receipt_after_its_word_owes_what_was_earned(restarted):
    made, lease = market()
    late = []
    made.lost = lambda _to, message: (
        isinstance(message, messages.ReceiptSent | messages.CloseAccepted) and (late.append(message) or True)
    )
    work(made, lease, 2)
    made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))
    for _ in range(40):
        made.pass_time(MINUTE_MS)
    assert made.engines[PROVIDER].state.sale_on(lease).phase == "unpaid", "it was written off"
    made.lost = lambda *_: False
    if restarted:
        made.restart(PROVIDER, devices=1)
        made.restart(BUYER, devices=0)
    for message in (late[0], late[-1]):
        made.tell(PROVIDER, BUYER, message)
    made.pass_time(10 * MINUTE_MS)
    owed, earned = books(made)
    assert owed == earned >= 4_000
    assert made.engines[PROVIDER].state.ledger.balance(f"unpaid:{BUYER.hex()}") == 0, "and none of it is unpaid"
    assert channels_left(made) == (0, 0)


def test_a_channel_whose_last_receipt_is_refused_ends_at_what_was_vouched_for():
    made, lease = market()
    made.lost = lambda _to, message: isinstance(message, messages.ReceiptSent)
    work(made, lease, 2)
    made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))
    for _ in range(40):
        made.pass_time(MINUTE_MS)
    assert channels_left(made)[1] == 1, "the receipt may still be paid for"
    made.lost = lambda *_: False
    (channel,) = made.engines[PROVIDER].state.earning.live
    refusal = messages.ReceiptRefused(channel_id=channel, seq=2, reason="never")
    made.tell(BUYER, PROVIDER, refusal)
    made.pass_time(10 * MINUTE_MS)
    owed, earned = books(made)
    assert owed == earned == 2_000
    assert channels_left(made) == (0, 0)
