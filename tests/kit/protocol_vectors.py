"""Print vectors for who writes a node: ``PYTHONPATH=tests python tests/kit/protocol_vectors.py``.

They go to ``tests/vectors/protocol.json``. Keys are secrets that anybody knows; times are fixed. Bytes are hex, and
integers decimal text, since JSON's numbers are too short for money.
"""

import dataclasses
import json
import struct
import sys
from dataclasses import replace
from typing import Any

from kit import trading

from hansa.market.receipts import next_statement
from hansa.node.messaging.peer_exchange import PeersWanted
from hansa.node.network.libp2p_kad import key_of
from hansa.node.network.libp2p_requests import MULTISTREAM, header_line
from hansa.node.storage.blob_exchange import ChunkWanted, TreeWanted
from hansa.proto import book_messages, messages
from hansa.proto.binding import Role, bind
from hansa.proto.blob import blob_ref
from hansa.proto.codec import encode
from hansa.proto.currency import currency_id, unit_of
from hansa.proto.documents import (
    CooperativeClose,
    CreditLine,
    Netting,
    Payment,
    TreeHead,
    Voucher,
    channel_id,
    log_id_of,
)
from hansa.proto.market_documents import Advert, Device, Fact
from hansa.proto.network import DOMAIN, GENESIS
from hansa.proto.peer_id import peer_id_of, peer_id_text
from hansa.proto.protocols import HELLO, MARKET, OLDER_MARKET, VERSION, number_of
from hansa.proto.signing import Signed, SigningKey, checksum_address, sign
from hansa.proto.splits import Split, splits_hash
from hansa.proto.typed_data import digest, encode_type, struct_hash, type_hash
from hansa.scheduler.advert_classes import capability_names, classes_of
from hansa.scheduler.book_digests import mark

NOW_MS = trading.NOW_MS
BUYER, PROVIDER = trading.BUYER_KEY, trading.PROVIDER_KEY
BUYER_NODE, PROVIDER_NODE = SigningKey(b"\x0b" * 32), SigningKey(b"\x0c" * 32)
KEYS = {"buyer": BUYER, "buyer's node": BUYER_NODE, "provider": PROVIDER, "provider's node": PROVIDER_NODE}
SPLITS = (Split(account=bytes([1]) * 20, bps=250), Split(account=bytes([2]) * 20, bps=50))
DEVICE = Device(
    id=b"d" * 32,
    kind="gpu",
    model="NVIDIA H100 80GB HBM3",
    memory_bytes=80 << 30,
    cores_milli=8_000,
    facts=(Fact(name="compute", value="9.0"),),
)


def name_of(key: SigningKey) -> str:
    """The peer id of a node's key."""
    return peer_id_text(peer_id_of(key.public_key))


def plain(value: Any) -> Any:
    """A value for JSON, its fields under the names that they have on the wire."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if type(value) is int else value


def documents() -> dict[str, tuple[Any, SigningKey]]:
    """One of each that is signed, of one trade, and by whom."""
    hello = bind(
        PROVIDER, PROVIDER_NODE, DOMAIN,
        roles=Role.PROVIDER, spend_limit=0, not_before_ms=NOW_MS, not_after_ms=NOW_MS + 2_592_000_000, epoch=1,
    )  # fmt: skip
    tender = trading.tender(peer_id=name_of(BUYER_NODE), splits=SPLITS)
    bid = trading.bid(tender, splits_hash=splits_hash(SPLITS)).document
    channel = trading.channel(splits_hash=splits_hash(SPLITS))
    channel_number = channel_id(DOMAIN, channel)
    award = trading.award(bid, channel_id=channel_number)
    lease = digest(DOMAIN, award)
    second = replace(trading.line(2_000, lease=b"\xff" * 32), device=b"e" * 32)
    pairs = (
        (trading.line(1_000, lease=lease), trading.evidence(1, lease=lease)),
        (second, trading.evidence(2, lease=second.lease)),
    )
    statement = next_statement(
        channel_id=channel_number,
        last=None,
        lines={line.lease: line for line, _ in pairs},
        evidence={proof.lease: proof for _, proof in pairs},
    )
    advert = Advert(
        signer=PROVIDER.address,
        peer_id=name_of(PROVIDER_NODE),
        addresses=(f"/ip4/192.0.2.1/tcp/4077/p2p/{name_of(PROVIDER_NODE)}",),
        devices=(DEVICE,),
        free=1,
        tier="sandbox",
        features=("egress", "python3.11"),
        region="eu-west-1",
        facts=(),
        currency="USD",
        price_e18_per_device_ms=555_555_555_555_555_556,
        sequence=1,
        expires_ms=NOW_MS + 60_000,
    )
    netting = Netting(
        lower=min(BUYER.address, PROVIDER.address),
        higher=max(BUYER.address, PROVIDER.address),
        unit=unit_of("USD"),
        total=5,
        nonce=1,
    )
    return {
        "NodeBinding": (hello.binding, PROVIDER),
        "Advert": (advert, PROVIDER),
        "Tender": (tender, BUYER),
        "Bid": (bid, PROVIDER),
        "Decline": (trading.decline(tender).document, PROVIDER),
        "ChannelConfig": (channel, BUYER),
        "Award": (award, BUYER),
        "Receipt": (statement.receipt, PROVIDER),
        "Voucher": (
            Voucher(channel_id=channel_number, cumulative=3_000, statement=digest(DOMAIN, statement.receipt)),
            BUYER,
        ),
        "CooperativeClose": (CooperativeClose(channel_id=channel_number, cumulative=3_000), BUYER),
        "CreditLine": (
            CreditLine(
                creditor=PROVIDER.address, debtor=BUYER.address, unit=unit_of("USD"),
                limit=1 << 70, not_after=NOW_MS + 86_400_000, nonce=1,
            ),
            PROVIDER,
        ),
        "Payment": (
            Payment(
                creditor=PROVIDER.address, debtor=BUYER.address, unit=unit_of("USD"),
                total=3_000, how="by hand", nonce=1, paid_ms=NOW_MS,
            ),
            PROVIDER,
        ),
        "Netting": (netting, BUYER),
        "TreeHead": (
            TreeHead(log_id=log_id_of(PROVIDER.address), size=1, root=bytes(32), timestamp_ms=NOW_MS),
            PROVIDER,
        ),
    }  # fmt: skip


def frames() -> dict[str, Any]:
    """Messages of one trade as they are before they are encoded."""
    signed: dict[str, Signed[Any]] = {name: sign(DOMAIN, said, key) for name, (said, key) in documents().items()}
    binding = signed["NodeBinding"].document
    award = signed["Award"].document
    lease = digest(DOMAIN, award)
    package = blob_ref(b"package")
    return {
        "hello": messages.Hello(
            binding=binding,
            account_signature=signed["NodeBinding"].signature,
            node_signature=PROVIDER_NODE.sign_digest(digest(DOMAIN, binding)),
        ),
        "advert by gossip": messages.AdvertPublished(advert=signed["Advert"]),
        "tender": messages.TenderSent(tender=signed["Tender"]),
        "bid": messages.BidSent(bid=signed["Bid"]),
        "decline": messages.DeclineSent(decline=signed["Decline"]),
        "award": messages.AwardSent(
            award=signed["Award"], channel=signed["ChannelConfig"].document, workload=trading.workload()
        ),
        "confirmation": messages.LeaseConfirmed(lease=lease),
        "start, without a checkpoint": messages.RunOrdered(lease=lease, round=0, checkpoint=None, mirrors=()),
        "report, with a double": messages.RunReported(
            lease=lease, step=1, metrics=(messages.Metric(name="loss", value=0.5),), started=True
        ),
        "voucher": messages.VoucherSent(currency="USD", voucher=signed["Voucher"]),
        "credit, with an integer above 64 bits": messages.CreditGranted(line=signed["CreditLine"]),
        "end": messages.RunEnded(
            lease=lease, outcome="succeeded", kind="", reason="", outputs=0, line=None, paid=0, vouched=3_000
        ),
        "book, compared by an empty one": book_messages.BookCompared(
            shelves=(book_messages.ShelfDigests(name="gpu-80", bits=0, digests=bytes(8)),), after=bytes(20)
        ),
        "peers wanted": PeersWanted(addrs=()),
        "tree wanted": TreeWanted(ref=package, first=0),
        "chunk wanted": ChunkWanted(ref=package, index=0),
    }


def requests() -> dict[str, str]:
    """The bytes of one stream, in both directions."""
    hello = encode(frames()["hello"])
    asked = header_line(MULTISTREAM) + header_line(HELLO)
    return {
        "caller": (asked + struct.pack(">I", len(hello)) + hello).hex(),
        "answer": (asked + struct.pack(">BI", 0, len(hello)) + hello).hex(),
        "refusal": (asked + struct.pack(">BI", 1, 4) + b"busy").hex(),
        "proposal": (header_line(MULTISTREAM) + header_line(MARKET)).hex(),
        "not spoken": (header_line(MULTISTREAM) + header_line("na")).hex(),
        "older proposal": (header_line(MULTISTREAM) + header_line(OLDER_MARKET)).hex(),
    }


def older_frames() -> dict[str, Any]:
    """What is written otherwise for one who speaks the number before, by protocol."""
    refused = messages.LeaseRefused(lease=trading.LEASE, kind="mismatch", reason="the workload is not the award's")
    assert messages.as_of(messages.ProofSent(proof=b""), number_of(OLDER_MARKET)) is None
    frame = messages.as_of(refused, number_of(OLDER_MARKET))
    assert frame is not None
    return {
        OLDER_MARKET: {"name": "LeaseRefused", "fields": plain(refused), "frame": frame.hex(), "read_as": "not-held"}
    }


def vectors() -> dict[str, Any]:
    """All of it."""
    told = documents()
    advert = told["Advert"][0]
    long = bytes(range(256)) * 8192 + b"."
    return {
        "version": VERSION,
        "keys": {
            name: {
                "secret": key.secret().hex(),
                "public_key": key.public_key.hex(),
                "address": checksum_address(key.address),
                "peer_id": name_of(key),
                "peer_id_bytes": peer_id_of(key.public_key).hex(),
            }
            for name, key in KEYS.items()
        },
        "domain": {
            "genesis": GENESIS.hex(),
            "name": DOMAIN.name,
            "version": DOMAIN.version,
            "chain_id": str(DOMAIN.chain_id),
            "verifying_contract": DOMAIN.verifying_contract.hex(),
            "separator": DOMAIN.separator.hex(),
        },
        "documents": {
            name: {
                "signer": next(who for who, one in KEYS.items() if one is key),
                "fields": plain(document),
                "type": encode_type(type(document)),
                "type_hash": type_hash(type(document)).hex(),
                "struct_hash": struct_hash(document).hex(),
                "digest": digest(DOMAIN, document).hex(),
                "signature": key.sign_digest(digest(DOMAIN, document)).hex(),
            }
            for name, (document, key) in told.items()
        },
        "frames": {
            name: {"name": type(message).__name__, "fields": plain(message), "frame": encode(message).hex()}
            for name, message in frames().items()
        },
        "older_frames": older_frames(),
        "requests": requests(),
        "derived": {
            "workload_digest": digest(DOMAIN, trading.workload()).hex(),
            "splits_hash": splits_hash(SPLITS).hex(),
            "currency_id USD": currency_id("USD").hex(),
            "unit USD": unit_of("USD").hex(),
            "advert_classes": list(classes_of(advert)),
            "capability_names": list(capability_names(advert)),
            "kad_keys": {name: key_of(name).hex() for name in capability_names(advert)},
            "book_mark": f"{mark(advert.signer, advert.sequence):016x}",
            "blobs": {
                "empty": blob_ref(b"").root.hex(),
                "of the 7 bytes 'package'": blob_ref(b"package").root.hex(),
                "of 00 01 .. ff repeated 8192 times, and a full stop": blob_ref(long).root.hex(),
            },
        },
    }


if __name__ == "__main__":
    json.dump(vectors(), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
