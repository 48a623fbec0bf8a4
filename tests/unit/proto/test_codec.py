"""Any bytes become a value or a ``ProtocolError``; any value comes back as it was; the wire does not drift."""

import contextlib
import dataclasses
import json
import typing
from dataclasses import dataclass, replace
from pathlib import Path

import msgpack
import pytest
from drawn_values import dataclasses_of, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import trading
from kit.older_peer import read_as_before

from hansa.market.effects import unsigned
from hansa.market.ledger import Ledger, vouched_by_buyer
from hansa.market.track_record import Record
from hansa.node.engine import events
from hansa.node.engine.state import NodeState, Snapshot, snapshot
from hansa.proto import book_messages, messages
from hansa.proto.blob import BlobRef
from hansa.proto.codec import DEFAULT_ITEMS, decode, encode
from hansa.proto.documents import CooperativeClose, CreditLine, Netting, Payment, TreeHead, Voucher
from hansa.proto.errors import Malformed, ProtocolError, TooLarge, UnsupportedVersion
from hansa.proto.messages import Direct
from hansa.proto.protocols import VERSION
from hansa.proto.units import AbsentMeans

MESSAGES = typing.get_args(Direct)
EVENTS = typing.get_args(events.NodeEvent)
GOLDEN = Path(__file__).with_name("golden_frames.json")
OLDER = Path(__file__).with_name("golden_frames_4.json")
LIMIT = 1 << 20


def read(data, kinds=Direct):
    return decode(data, kinds, limit_bytes=LIMIT)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data):
    with contextlib.suppress(ProtocolError):
        assert isinstance(read(data), MESSAGES)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 99), inner),
    max_leaves=8,
)


@given(st.sampled_from([kind.__name__ for kind in MESSAGES]), JUNK)
def test_any_fields_are_a_message_or_a_protocol_error(name, junk):
    data = msgpack.packb([VERSION, name, junk], use_bin_type=True)
    with pytest.raises(ProtocolError):
        read(data)


@given(st.data())
@settings(max_examples=200)
def test_one_field_that_is_something_else_is_refused_or_right(data):
    """A sound frame with one value replaced: the usual course with one stray in it."""
    value = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))]
    version, name, fields = msgpack.unpackb(encode(value))
    key = data.draw(st.sampled_from(sorted(fields)))
    fields[key] = data.draw(JUNK)
    try:
        again = read(msgpack.packb([version, name, fields], use_bin_type=True))
    except ProtocolError:
        return
    assert read(encode(again)) == again


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_comes_back_as_it_was(kind):
    @given(dataclasses_of(kind))
    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    def round_trip(value):
        assert read(encode(value)) == value

    round_trip()


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_journal_event_comes_back_as_it_was(kind):
    @given(dataclasses_of(kind))
    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    def round_trip(value):
        assert read(encode(value), events.NodeEvent) == value

    round_trip()


@given(st.data())
@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
def test_a_snapshot_comes_back_as_it_was(data):
    parts = typing.get_type_hints(Snapshot, include_extras=True)
    empty = snapshot(NodeState())
    name = data.draw(st.sampled_from(sorted(parts)))
    written = replace(empty, **{name: data.draw(values(parts[name]))})
    assert read(encode(written), Snapshot) == written


@pytest.mark.parametrize(
    "amount", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 200, -(1 << 63), -(1 << 63) - 1]
)
def test_the_books_hold_sums_of_any_size_and_sign(amount):
    books = Ledger(balances={"a": amount}, entries=1)
    assert read(encode(books), Ledger) == books


# Limits.


def test_more_bytes_than_allowed_are_not_looked_at():
    with pytest.raises(TooLarge):
        decode(b"\xc1" * 11, Direct, limit_bytes=10)


@pytest.mark.parametrize("version", [0, VERSION + 1, 1 << 63])
def test_another_version_is_named_as_such(version):
    with pytest.raises(UnsupportedVersion):
        read(msgpack.packb([version, "BidReleased", {}]))


@pytest.mark.parametrize(
    "frame",
    [
        [],
        [VERSION, "BidReleased"],
        [VERSION, "BidReleased", {}, 1],
        [True, "BidReleased", {}],
        [VERSION, b"BidReleased", {}],
        [VERSION, "Snapshot", {}],
        [VERSION, "BidReleased", []],
        [VERSION, "BidReleased", {"bid": bytes(32)}],
        [VERSION, "BidReleased", {"bid": bytes(32), "reason": "", "more": 1}],
        [VERSION, "BidReleased", {"bid": bytes(32), "other": ""}],
        [VERSION, "BidReleased", {"bid": bytes(31), "reason": ""}],
        [VERSION, "BidReleased", {"bid": bytes(32), "reason": "x" * 257}],
        [VERSION, "BidReleased", {"bid": bytes(32), "reason": "é" * 129}],
        [VERSION, "BidReleased", {"bid": bytes(32), "reason": b"x"}],
        [VERSION, "BidReleased", {"bid": "x" * 32, "reason": ""}],
    ],
)
def test_what_is_nearly_a_message_is_malformed(frame):
    with pytest.raises(Malformed):
        read(msgpack.packb(frame, use_bin_type=True))


def test_a_key_that_stands_twice_is_malformed():
    body = encode(messages.BidReleased(bid=bytes(32), reason=""))
    twice = body.replace(b"\x82\xa3bid", b"\x83\xa6reason\xa0\xa3bid")
    assert len(twice) > len(body)
    with pytest.raises(Malformed):
        read(twice)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1])
def test_a_metric_is_a_finite_number(value):
    frame = [VERSION, "RunReported", {"lease": bytes(32), "step": 1, "metrics": [{"name": "a", "value": value}]}]
    frame[2]["started"] = True
    with pytest.raises(Malformed):
        read(msgpack.packb(frame))


def test_more_items_than_allowed_are_too_large():
    metric = {"name": "a", "value": 1.0}
    fields = {"lease": bytes(32), "step": 1, "metrics": [metric] * (messages.MAX_METRICS + 1), "started": True}
    with pytest.raises(TooLarge):
        read(msgpack.packb([VERSION, "RunReported", fields]))
    assert DEFAULT_ITEMS >= messages.MAX_LINES


@pytest.mark.parametrize("other", ["", "ab", b"", {}, {"name": 1}, 0, None, True])
def test_only_a_list_is_read_as_a_list(other):
    """Else letters and keys would pass for items, and what has no items would raise what nobody expects."""
    fields = {"lease": bytes(32), "step": 1, "metrics": other, "started": True}
    with pytest.raises(Malformed, match="not a list"):
        read(msgpack.packb([VERSION, "RunReported", fields], use_bin_type=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Holds one of two things, as events hold effects."""

    held: messages.BidReleased | messages.MirrorWanted


def test_one_of_several_things_is_its_name_and_its_fields_and_no_more():
    box = Box(held=messages.BidReleased(bid=bytes(32), reason=""))
    version, name, fields = msgpack.unpackb(encode(box))
    assert read(msgpack.packb([version, name, fields]), Box) == box
    for other in (fields["held"][:1], [*fields["held"], 1], []):
        with pytest.raises(Malformed, match=r"not \[name, fields\]"):
            read(msgpack.packb([version, name, {"held": other}]), Box)


def test_deep_nesting_is_malformed():
    with pytest.raises(Malformed):
        read(b"\x91" * 100_000 + b"\xc0")


@pytest.mark.parametrize(
    "body",
    [bytes(8), b"\x01" * 8, b"\x00" * 9, b"\x00\x00" + b"\xff" * 8, b"\x00" * 2 + b"\x01" + bytes(8), b"\x7f" * 34],
)
def test_a_large_integer_has_one_form(body):
    closing = CooperativeClose(channel_id=bytes(32), cumulative=1 << 64)
    frame = msgpack.unpackb(encode(messages.CloseProposed(currency="USD", close=unsigned(closing))))
    assert frame[2]["close"]["document"]["cumulative"] == b"\x01" + bytes(8)
    frame[2]["close"]["document"]["cumulative"] = body
    with pytest.raises(Malformed):
        read(msgpack.packb(frame, use_bin_type=True))


def test_an_amount_is_below_two_to_the_128():
    for cumulative, fine in (((1 << 128) - 1, True), (1 << 128, False)):
        data = encode(
            messages.CloseProposed(
                currency="USD", close=unsigned(CooperativeClose(channel_id=bytes(32), cumulative=cumulative))
            )
        )
        if fine:
            assert read(data).close.document.cumulative == cumulative
        else:
            with pytest.raises(Malformed):
                read(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picky:
    """A class whose own rules refuse some values."""

    number: int

    def __post_init__(self) -> None:
        """Refuse thirteen."""
        if self.number == 13:
            raise ValueError("unlucky")


def test_values_that_do_not_go_together_are_malformed():
    assert read(encode(Picky(number=12)), Picky).number == 12
    with pytest.raises(Malformed):
        read(msgpack.packb([VERSION, "Picky", {"number": 13}]), Picky)


# The wire as it is.

_TENDER = trading.tender()
_BID = trading.bid(_TENDER).document
_AWARD = trading.award(_BID)
_LEASE = trading.LEASE
_STATEMENT = trading.statement((trading.line(1_000), trading.evidence(1)))
_BLOB = BlobRef(root=b"r" * 32, size_bytes=7)
_LINE = CreditLine(creditor=trading.PROVIDER, debtor=trading.BUYER, unit=bytes(32), limit=1 << 70, not_after=1, nonce=1)
_PAYMENT = Payment(
    creditor=trading.PROVIDER, debtor=trading.BUYER, unit=bytes(32), total=1 << 70, how="by hand", nonce=1, paid_ms=1
)
_NETTING = Netting(lower=trading.BUYER, higher=trading.PROVIDER, unit=bytes(32), total=1, nonce=1)
_HEAD = TreeHead(log_id=bytes(32), size=1, root=bytes(32), timestamp_ms=1)
_VOUCHER = Voucher(channel_id=trading.CHANNEL_ID, cumulative=1 << 70, statement=bytes(32))
_CLOSE = CooperativeClose(channel_id=trading.CHANNEL_ID, cumulative=5)

SAMPLES = {
    type(value).__name__: value
    for value in (
        messages.TenderSent(tender=unsigned(_TENDER)),
        messages.BidSent(bid=unsigned(_BID)),
        messages.DeclineSent(decline=unsigned(trading.decline(_TENDER).document)),
        messages.BidReleased(bid=_LEASE, reason="another bid won"),
        messages.AwardSent(award=unsigned(_AWARD), channel=trading.CHANNEL, workload=trading.workload()),
        messages.LeaseConfirmed(lease=_LEASE),
        messages.LeaseRefused(lease=_LEASE, kind="mismatch", reason="no"),
        messages.LeaseCancelled(lease=_LEASE, reason="no"),
        messages.RunOrdered(lease=_LEASE, round=2, checkpoint=_BLOB, mirrors=()),
        messages.RunReported(lease=_LEASE, step=3, metrics=(messages.Metric(name="loss", value=0.5),), started=True),
        messages.RunLogSent(lease=_LEASE, text="hello"),
        messages.RoundContributed(lease=_LEASE, round=1, weight_milli=1_000, state=_BLOB),
        messages.RoundPublished(lease=_LEASE, round=1, state=_BLOB),
        messages.CheckpointStored(lease=_LEASE, round=1, step=3, checkpoint=_BLOB),
        messages.MirrorWanted(lease=_LEASE, shard=1, checkpoint=_BLOB, holder=trading.OTHER),
        messages.MirrorHeld(lease=_LEASE, shard=1, checkpoint=_BLOB),
        messages.MirrorRefused(lease=_LEASE, shard=1, checkpoint=_BLOB, reason="no room"),
        messages.MirrorReleased(lease=_LEASE, shard=1),
        messages.CheckpointGranted(lease=_LEASE, checkpoint=_BLOB, account=trading.OTHER),
        messages.OutputStored(lease=_LEASE, path="model.npz", blob=_BLOB),
        messages.RunEnded(
            lease=_LEASE,
            outcome="failed",
            kind="unfunded",
            reason="no",
            outputs=1,
            line=unsigned(_LINE),
            paid=1 << 70,
            vouched=7,
        ),
        messages.RunKept(lease=_LEASE, kind="user-exception", reason="no", until_ms=trading.NOW_MS),
        messages.LeaseReclaimed(lease=_LEASE, by_ms=trading.NOW_MS, reason="the owner wants to play"),
        messages.RunStopOrdered(lease=_LEASE, reason="enough"),
        messages.DeliveryAccepted(lease=_LEASE),
        messages.PenaltyReleased(lease=_LEASE),
        messages.ReceiptSent(
            receipt=unsigned(_STATEMENT.receipt), lines=_STATEMENT.lines, evidence=_STATEMENT.evidence
        ),
        messages.VoucherSent(currency="USD", voucher=unsigned(_VOUCHER)),
        messages.ReceiptRefused(channel_id=trading.CHANNEL_ID, seq=1, reason="no"),
        messages.ReceiptDisputed(
            channel_id=trading.CHANNEL_ID, seq=1, payable=(trading.line(900, lease=_LEASE),), reason="too much time"
        ),
        messages.CloseProposed(currency="USD", close=unsigned(_CLOSE)),
        messages.CloseAccepted(currency="USD", close=unsigned(_CLOSE)),
        messages.CreditGranted(line=unsigned(_LINE)),
        messages.PaymentAcknowledged(payment=unsigned(_PAYMENT)),
        messages.NettingProposed(netting=unsigned(_NETTING)),
        messages.NettingAccepted(netting=unsigned(_NETTING)),
        messages.TreeHeadsSent(own=unsigned(_HEAD), seen=(unsigned(_HEAD),)),
        messages.ConsistencyWanted(first=1, second=1 << 40),
        messages.ConsistencySent(first=1, second=1 << 40, proof=(bytes(32),)),
        messages.ProofSent(proof=b"\x00\x01"),
    )
}


def test_the_wire_is_what_it_was():
    """A change here is a change of the protocol: see docs/decisions/0024, then write the file anew."""
    written = json.loads(GOLDEN.read_text())
    assert {name: encode(value).hex() for name, value in SAMPLES.items()} == written["frames"]
    assert written["version"] == VERSION
    for name, frame in written["frames"].items():
        assert read(bytes.fromhex(frame)) == SAMPLES[name]


def test_what_a_node_of_the_time_before_says_is_understood():
    """Its frames, as they were; a refusal named no kind then, and there were fewer messages."""
    written = json.loads(OLDER.read_text())
    assert written["version"] == VERSION
    for name, frame in written["frames"].items():
        expected = replace(SAMPLES[name], kind="not-held") if name == "LeaseRefused" else SAMPLES[name]
        assert read(bytes.fromhex(frame)) == expected


def test_what_is_said_to_a_node_of_the_time_before_is_what_it_said_itself():
    written = json.loads(OLDER.read_text())["frames"]
    said = {name: messages.as_of(value, 1) for name, value in SAMPLES.items()}
    disputed = SAMPLES["ReceiptDisputed"]
    plainer = messages.ReceiptRefused(channel_id=disputed.channel_id, seq=disputed.seq, reason=disputed.reason)
    assert said.pop("ReceiptDisputed") == encode(plainer, number=1)
    assert {name: data.hex() for name, data in said.items() if data is not None} == written
    assert {name for name, data in said.items() if data is None} == {"ProofSent"}
    assert {name: messages.as_of(value, 2) for name, value in SAMPLES.items()} == {
        name: encode(value) for name, value in SAMPLES.items()
    }


def test_the_peer_of_the_kit_reads_as_a_node_of_the_time_before_did():
    written = json.loads(OLDER.read_text())["frames"]
    for name, frame in written.items():
        assert encode(read_as_before(bytes.fromhex(frame))).hex() == frame, name
    for name in ("LeaseRefused", "ProofSent"):
        with pytest.raises(Malformed):
            read_as_before(encode(SAMPLES[name]))


def test_only_what_nobody_signs_may_lack_a_field():
    lacking = {
        (kind.__name__, name)
        for kind in MESSAGES
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        if any(isinstance(mark, AbsentMeans) for mark in typing.get_args(hint))
    }
    assert lacking == {("LeaseRefused", "kind")}
    fields = {"lease": bytes(32), "kind": "mismatch"}
    with pytest.raises(Malformed):
        read(msgpack.packb([VERSION, "LeaseRefused", fields]))
    with pytest.raises(Malformed):
        read(msgpack.packb([VERSION, "LeaseRefused", {"lease": bytes(32), "reason": "", "kind": "no such"}]))


def test_every_message_has_its_golden_frame():
    assert set(SAMPLES) == {kind.__name__ for kind in MESSAGES}


def test_an_entry_of_the_books_comes_back():
    entry = vouched_by_buyer(
        channel_id=bytes(32), seq=1, provider=trading.PROVIDER, shares={trading.JOB: 5}, at_ms=trading.NOW_MS
    )
    assert read(encode(entry), type(entry)) == entry


def test_no_field_that_goes_over_the_wire_has_a_default_so_none_may_be_missing():
    wire = [
        *messages.Direct.__args__,
        messages.Hello,
        messages.AdvertPublished,
        messages.BookRequested,
        messages.BookSent,
        book_messages.BookCompared,
        book_messages.BookDifference,
        book_messages.AdvertsWanted,
        book_messages.OwnAdvertWanted,
    ]
    seen = set()
    while wire:
        kind = wire.pop()
        if kind in seen or not dataclasses.is_dataclass(kind):
            continue
        seen.add(kind)
        for field in dataclasses.fields(kind):
            assert field.default is dataclasses.MISSING, f"{kind.__name__}.{field.name}"
            assert field.default_factory is dataclasses.MISSING, f"{kind.__name__}.{field.name}"
        for hint in typing.get_type_hints(kind, include_extras=True).values():
            wire += _classes_in(hint)
    assert len(seen) > 30


def _classes_in(hint):
    arguments = typing.get_args(hint)
    return [typing.get_origin(hint) or hint, *(found for inner in arguments for found in _classes_in(inner))]


def test_a_state_written_before_a_field_came_is_read_with_the_fields_default():
    version, name, fields = msgpack.unpackb(encode(Record(good=3, bad=1)), strict_map_key=True)
    del fields["bad"]
    older = msgpack.packb([version, name, fields])
    assert decode(older, Record, limit_bytes=1_000) == Record(good=3, bad=0)
    newer = msgpack.packb([version, name, {**fields, "other": 1}])
    with pytest.raises(Malformed, match="not exactly the fields"):
        decode(newer, Record, limit_bytes=1_000)
