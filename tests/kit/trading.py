"""The documents of one small trade, sound in every field; a test changes the one that it is about."""

from dataclasses import replace
from typing import Any

from hansa.market.receipts import LeaseTerms, Statement, next_statement
from hansa.proto.blob import blob_ref
from hansa.proto.currency import currency_id
from hansa.proto.documents import ChannelConfig, MeterLine, channel_id
from hansa.proto.market_documents import (
    LEASE_ANY,
    LEASE_SPOT,
    Award,
    Bid,
    Decline,
    Device,
    Evidence,
    Requirements,
    Tender,
)
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, SigningKey, sign
from hansa.proto.typed_data import digest
from hansa.proto.workload import Workload
from hansa.scheduler.job_spec import JobSpec

NOW_MS = 1_700_000_000_000
BUYER_KEY, PROVIDER_KEY, OTHER_KEY, THIRD_KEY = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3, 4))
BUYER, PROVIDER, OTHER, THIRD = (key.address for key in (BUYER_KEY, PROVIDER_KEY, OTHER_KEY, THIRD_KEY))
JOB = b"j" * 32
DEVICE = Device(id=b"d" * 32, kind="cpu", model="Xeon", memory_bytes=4 << 30, cores_milli=2_000, facts=())
PRICE = 10**18
"""One smallest unit for a device-millisecond, so that amounts in tests can be read as milliseconds."""
BLOB = blob_ref(b"blob")


def needs(**changes: Any) -> Requirements:
    """What a shard requires."""
    return replace(
        Requirements(
            choices=(),
            clauses=(),
            kind="cpu",
            devices=1,
            device_memory_bytes=0,
            cores_milli=1_000,
            memory_bytes=1 << 30,
            scratch_bytes=1 << 20,
            tier="sandbox",
            features=(),
            egress=(),
            wall_ms=600_000,
        ),
        **changes,
    )


def spec(**changes: Any) -> JobSpec:
    """A job of two shards."""
    return replace(
        JobSpec(
            name="digits",
            entry="a.py:main",
            shards=2,
            workers=1,
            parameters=(),
            requirements=needs(),
            currency="USD",
            budget=10_000_000,
            price_ceiling_e18_per_device_ms=2 * PRICE,
            meter_interval_ms=1_000,
            bid_window_ms=2_000,
            round_timeout_ms=5_000,
            stall_ms=60_000,
            silence_ms=10_000,
            retries=1,
            output_bytes=1 << 20,
            state_bytes=1 << 20,
            fetch_bytes=0,
            shared_memory_bytes=192 << 20,
            egress_bytes=0,
            keep_failed_ms=0,
        ),
        **changes,
    )


def workload(**changes: Any) -> Workload:
    """What an award buys the running of."""
    return replace(spec().workload(JOB, blob_ref(b"package"), None), **changes)


def tender(**changes: Any) -> Tender:
    """The call for bids on one shard."""
    return replace(
        Tender(
            facts=(),
            lease=LEASE_ANY,
            deadline_ms=0,
            signer=BUYER,
            peer_id="buyer",
            job=JOB,
            shards=(0,),
            requirements=needs(),
            currency="USD",
            price_ceiling_e18_per_device_ms=2 * PRICE,
            meter_interval_ms=1_000,
            splits=(),
            bids_close_ms=NOW_MS + 2_000,
            expires_ms=NOW_MS + 60_000,
            nonce=b"t" * 32,
        ),
        **changes,
    )


def bid(answers: Tender, *, key: SigningKey = PROVIDER_KEY, **changes: Any) -> Signed[Bid]:
    """A bid on a tender, signed."""
    made = Bid(
        lease=LEASE_SPOT,
        penalty=0,
        facts=(),
        signer=key.address,
        tender=digest(DOMAIN, answers),
        devices=(DEVICE.id,),
        tier="sandbox",
        price_e18_per_device_ms=PRICE,
        meter_interval_ms=1_000,
        voucher_timeout_ms=5_000,
        max_unpaid=3_000,
        max_total=600_001,
        prepay=0,
        payee=key.address,
        reclaim_notice_ms=1_000,
        splits_hash=bytes(32),
        expires_ms=NOW_MS + 12_000,
        nonce=b"b" * 32,
    )
    return sign(DOMAIN, replace(made, **changes), key)


def decline(answers: Tender, *, key: SigningKey = PROVIDER_KEY) -> Signed[Decline]:
    """A "no", signed."""
    made = Decline(
        shortfalls=(),
        signer=key.address,
        tender=digest(DOMAIN, answers),
        reason="busy",
        relaxation="",
        expires_ms=NOW_MS + 60_000,
        nonce=b"n" * 32,
    )
    return sign(DOMAIN, made, key)


def channel(**changes: Any) -> ChannelConfig:
    """A channel between the two."""
    return replace(
        ChannelConfig(
            payer=BUYER,
            payer_signer=BUYER,
            payee=PROVIDER,
            payee_signer=PROVIDER,
            token=currency_id("USD"),
            challenge_period=86_400,
            splits_hash=bytes(32),
            salt=b"s" * 32,
        ),
        **changes,
    )


CHANNEL = channel()
CHANNEL_ID = channel_id(DOMAIN, CHANNEL)


def award(accepts: Bid, **changes: Any) -> Award:
    """The acceptance of a bid."""
    made = Award(
        signer=BUYER,
        bid=digest(DOMAIN, accepts),
        shard=0,
        channel_id=CHANNEL_ID,
        workload=digest(DOMAIN, workload()),
        confirm_by_ms=NOW_MS + 4_000,
        start_by_ms=NOW_MS + 34_000,
        ends_ms=NOW_MS + 634_000,
        nonce=b"a" * 32,
    )
    return replace(made, **changes)


LEASE = b"L" * 32
OTHER_LEASE = b"M" * 32


def terms(**changes: Any) -> LeaseTerms:
    """What was agreed for a lease."""
    return replace(
        LeaseTerms(
            lease=LEASE,
            job=JOB,
            shard=0,
            devices=(DEVICE.id,),
            tier="sandbox",
            price_e18_per_device_ms=PRICE,
            max_total=600_001,
            begins_ms=NOW_MS,
            ends_ms=NOW_MS + 600_000,
        ),
        **changes,
    )


def line(device_ms: int, *, at_ms: int | None = None, **changes: Any) -> MeterLine:
    """A lease's running total, at the price of one unit for a millisecond."""
    made = MeterLine(
        lease=LEASE,
        shard=0,
        device=DEVICE.id,
        start_ms=NOW_MS,
        end_ms=NOW_MS + device_ms if at_ms is None else at_ms,
        device_ms=device_ms,
        amount=device_ms,
    )
    return replace(made, **changes)


def evidence(steps: int, **changes: Any) -> Evidence:
    """What was delivered for it."""
    return replace(
        Evidence(lease=LEASE, shard=0, steps=steps, rounds=0, checkpoint=bytes(32), tier="sandbox", busy_ms=0),
        **changes,
    )


def statement(*pairs: tuple[MeterLine, Evidence], last: Statement | None = None, **changes: Any) -> Statement:
    """The receipt over these lines, as an honest provider writes it; ``changes`` are to the receipt."""
    made = next_statement(
        channel_id=CHANNEL_ID,
        last=last.receipt if last else None,
        lines={each.lease: each for each, _ in pairs},
        evidence={each.lease: each for _, each in pairs},
    )
    return replace(made, receipt=replace(made.receipt, **changes))
