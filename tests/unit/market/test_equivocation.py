"""Two signed objects that contradict each other prove a lie to anybody; everything else proves nothing."""

from dataclasses import replace

import pytest
from kit.trading import (
    BUYER_KEY,
    CHANNEL,
    CHANNEL_ID,
    DEVICE,
    NOW_MS,
    OTHER,
    OTHER_KEY,
    PROVIDER,
    PROVIDER_KEY,
    award,
    bid,
    evidence,
    line,
    statement,
    tender,
    terms,
)

from hansa.market.equivocation import (
    DeviceTwice,
    Equivocation,
    MeteredUse,
    TwoHeads,
    TwoReceipts,
    accused,
    in_words,
    proof_id,
)
from hansa.market.receipts import CLOCK_SKEW_MS, fault_in
from hansa.proto.codec import decode, encode
from hansa.proto.documents import TreeHead, channel_id, log_id_of
from hansa.proto.errors import ProtocolError
from hansa.proto.merkle import inclusion_proof
from hansa.proto.network import DOMAIN
from hansa.proto.signing import sign
from hansa.proto.typed_data import digest, struct_hash

HOUR_MS = 3_600_000


def two_receipts(**changes):
    first = statement((line(100), evidence(1))).receipt
    second = statement((line(200), evidence(1))).receipt
    proof = TwoReceipts(
        currency="USD",
        config=CHANNEL,
        first=sign(DOMAIN, first, PROVIDER_KEY),
        second=sign(DOMAIN, second, PROVIDER_KEY),
    )
    return replace(proof, **changes)


def head(size=5, root=b"r" * 32, *, key=PROVIDER_KEY, **changes):
    made = TreeHead(log_id=log_id_of(PROVIDER), size=size, root=root, timestamp_ms=1)
    return sign(DOMAIN, replace(made, **changes), key)


def lease_of(number, devices=(DEVICE.id,)):
    """A bid and an award of its own, and the lease that they make."""
    made = bid(tender(), devices=devices, nonce=bytes([number]) * 32).document
    agreed = award(made, nonce=bytes([number]) * 32)
    return made, agreed, digest(DOMAIN, agreed)


def use(number, start_ms, end_ms, *, device_ms=None, devices=(DEVICE.id,), key=PROVIDER_KEY):
    """What a provider charged for one lease, in a receipt beside another line."""
    made, agreed, lease = lease_of(number, devices)
    busy_ms = (end_ms - start_ms) * len(devices) if device_ms is None else device_ms
    charged = line(busy_ms, lease=lease, start_ms=NOW_MS + start_ms, end_ms=NOW_MS + end_ms)
    beside = line(7, lease=b"\xff" * 32)
    lines = (charged, beside)
    receipt = statement((charged, evidence(1, lease=lease)), (beside, evidence(1, lease=beside.lease))).receipt
    return MeteredUse(
        currency="USD",
        config=CHANNEL,
        receipt=sign(DOMAIN, receipt, key),
        line=charged,
        index=0,
        path=inclusion_proof([struct_hash(each) for each in lines], 0),
        award=agreed,
        bid=made,
    )


def twice(one=(1, 0, HOUR_MS), other=(2, 0, HOUR_MS), **options):
    return DeviceTwice(device=DEVICE.id, one=use(*one, **options), other=use(*other, **options))


PROOFS = [two_receipts(), TwoHeads(first=head(), second=head(root=b"x" * 32)), twice()]


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: type(proof).__name__)
def test_it_proves_who_lied_after_any_journey_and_says_what_in_words(proof):
    read = decode(encode(proof), Equivocation, limit_bytes=1 << 20)
    assert read == proof
    assert accused(read) == PROVIDER
    assert len(proof_id(read)) == 32
    assert in_words(read)


@pytest.mark.parametrize(
    "proof",
    [
        two_receipts(second=two_receipts().first),
        two_receipts(second=sign(DOMAIN, two_receipts().second.document, OTHER_KEY)),
        two_receipts(first=sign(DOMAIN, two_receipts().first.document, BUYER_KEY)),
        two_receipts(second=sign(DOMAIN, replace(two_receipts().second.document, seq=2), PROVIDER_KEY)),
        two_receipts(config=replace(CHANNEL, salt=bytes(32))),
        two_receipts(config=replace(CHANNEL, payee_signer=OTHER)),
        two_receipts(currency="eip155:1/escrow:0x" + "11" * 20 + "/erc20:0x" + "22" * 20),
        two_receipts(currency="eip155:nonsense"),
    ],
)
def test_receipts_that_do_not_contradict_each_other_prove_nothing(proof):
    with pytest.raises(ProtocolError):
        accused(proof)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (head(), head()),
        (head(), head(timestamp_ms=9)),
        (head(), head(size=6, root=b"x" * 32)),
        (head(), head(root=b"x" * 32, key=OTHER_KEY)),
        (head(key=OTHER_KEY), head(root=b"x" * 32)),
        (head(), head(root=b"x" * 32, log_id=log_id_of(OTHER))),
        (head(log_id=b"\1" + log_id_of(PROVIDER)[1:]), head(root=b"x" * 32, log_id=b"\1" + log_id_of(PROVIDER)[1:])),
    ],
)
def test_heads_that_do_not_contradict_each_other_prove_nothing(first, second):
    with pytest.raises(ProtocolError):
        accused(TwoHeads(first=first, second=second))


@pytest.mark.parametrize(
    "proof",
    [
        twice(other=(2, HOUR_MS, 2 * HOUR_MS)),
        twice(other=(2, HOUR_MS - CLOCK_SKEW_MS, 2 * HOUR_MS)),
        twice(other=(1, 0, HOUR_MS)),
        twice(device_ms=HOUR_MS // 2),
        twice(devices=(DEVICE.id, b"e" * 32), device_ms=HOUR_MS),
        replace(twice(), device=b"e" * 32),
        replace(twice(), one=use(1, 0, HOUR_MS, key=OTHER_KEY)),
        replace(twice(), one=replace(use(1, 0, HOUR_MS), bid=replace(use(1, 0, HOUR_MS).bid, devices=(b"z" * 32,)))),
        replace(twice(), one=replace(use(1, 0, HOUR_MS), award=use(2, 0, HOUR_MS).award)),
        replace(twice(), one=replace(use(1, 0, HOUR_MS), line=replace(use(1, 0, HOUR_MS).line, device_ms=HOUR_MS + 1))),
        replace(twice(), one=replace(use(1, 0, HOUR_MS), index=1)),
        replace(twice(), one=replace(use(1, 0, HOUR_MS), config=replace(CHANNEL, payee_signer=OTHER))),
    ],
)
def test_honest_use_of_a_device_proves_nothing_and_neither_does_a_bent_proof(proof):
    with pytest.raises(ProtocolError):
        accused(proof)


def test_two_providers_that_name_one_device_prove_nothing_against_either():
    """A device's id is whatever its provider says: another one may say the same."""
    config = replace(CHANNEL, payee=OTHER, payee_signer=OTHER)
    theirs = use(2, 0, HOUR_MS)
    receipt = replace(theirs.receipt.document, channel_id=channel_id(DOMAIN, config))
    theirs = replace(theirs, config=config, receipt=sign(DOMAIN, receipt, OTHER_KEY))
    for one, other in ((use(1, 0, HOUR_MS), theirs), (theirs, use(1, 0, HOUR_MS))):
        with pytest.raises(ProtocolError):
            accused(DeviceTwice(device=DEVICE.id, one=one, other=other))


def test_of_several_devices_only_what_the_others_cannot_have_done_counts():
    pair = (DEVICE.id, b"e" * 32)
    assert accused(twice(devices=pair)) == PROVIDER
    assert accused(DeviceTwice(device=DEVICE.id, one=use(1, 0, HOUR_MS, devices=pair), other=use(2, 0, HOUR_MS)))


def test_one_gpu_sold_twice_is_not_paid_for():
    """Both leases are on one channel: a buyer refuses the receipt that charges for the device a second time."""
    leases = [lease_of(number)[2] for number in (1, 2)]
    known = {lease: terms(lease=lease, max_total=10**9, ends_ms=NOW_MS + 2 * HOUR_MS) for lease in leases}

    def receipt(*charged_ms):
        pairs = [
            (line(ms, lease=lease, amount=ms), evidence(1, lease=lease))
            for lease, ms in zip(leases, charged_ms, strict=False)
        ]
        return statement(*pairs)

    later_ms = NOW_MS + 2 * HOUR_MS
    assert fault_in(receipt(HOUR_MS), last=None, terms=known, now_ms=later_ms) is None
    why = fault_in(receipt(HOUR_MS, HOUR_MS), last=None, terms=known, now_ms=later_ms)
    assert why == "one device is charged on two leases for the same time"
    second = replace(receipt(HOUR_MS, HOUR_MS))
    assert second.receipt.channel_id == CHANNEL_ID
