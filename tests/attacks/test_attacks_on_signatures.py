"""Attacks on signatures and on who signs: each test has its attack's name, and fails when the defence is taken out."""

from dataclasses import dataclass, fields, replace
from itertools import permutations

import pytest
from kit.trading import BUYER, BUYER_KEY, OTHER_KEY, PROVIDER_KEY, channel
from kit.trading import tender as a_tender

from hansa.node.messaging.courier import check_signatures
from hansa.proto.binding import Role, bind, check_binding
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import CooperativeClose, NodeBinding, Voucher, channel_id
from hansa.proto.errors import BadSignature, Malformed, NotForUs, ProtocolError
from hansa.proto.messages import Hello, TenderSent, VoucherSent
from hansa.proto.network import DOMAIN
from hansa.proto.peer_id import peer_id_of
from hansa.proto.signing import CURVE_ORDER, ZERO_ADDRESS, Signed, check, recover, sign
from hansa.proto.typed_data import digest
from hansa.proto.units import Amount, Bytes32

CHAIN, ESCROW, TOKEN = 8453, b"\5" * 20, b"\6" * 20
ON_CHAIN = escrow_currency(CHAIN, ESCROW, TOKEN)
VOUCHER = Voucher(channel_id=b"c" * 32, cumulative=7, statement=b"s" * 32)


def for_domain_of(currency):
    return sign(currency_of(currency).domain, VOUCHER, BUYER_KEY)


@pytest.mark.parametrize(
    "elsewhere",
    [escrow_currency(1, ESCROW, TOKEN), escrow_currency(CHAIN, b"\7" * 20, TOKEN), "USD"],
    ids=["another chain", "another escrow", "the ledger"],
)
def test_replay_on_another_chain_or_escrow(elsewhere):
    signed = for_domain_of(ON_CHAIN)
    check(currency_of(ON_CHAIN).domain, signed, BUYER)
    with pytest.raises(BadSignature):
        check(currency_of(elsewhere).domain, signed, BUYER)
    check_signatures(VoucherSent(currency=ON_CHAIN, voucher=signed), BUYER)
    with pytest.raises(BadSignature):
        check_signatures(VoucherSent(currency=elsewhere, voucher=signed), BUYER)
    with pytest.raises(BadSignature):
        check_signatures(VoucherSent(currency=ON_CHAIN, voucher=for_domain_of(elsewhere)), BUYER)


def test_replay_on_another_channel():
    config = channel()
    ids = {channel_id(DOMAIN, replace(config, salt=bytes([number]) * 32)) for number in range(4)}
    ids |= {channel_id(currency_of(ON_CHAIN).domain, config), channel_id(DOMAIN, replace(config, payee=b"x" * 20))}
    assert len(ids) == 6
    signed = sign(DOMAIN, replace(VOUCHER, channel_id=min(ids)), BUYER_KEY)
    moved = Signed(document=replace(signed.document, channel_id=max(ids)), signature=signed.signature)
    with pytest.raises(BadSignature):
        check(DOMAIN, moved, BUYER)


def test_a_domain_spoofed_by_the_peer():
    """A voucher for its own fake escrow does not count in the currency that the lease's tender names."""
    fake = escrow_currency(CHAIN, b"\xfa" * 20, TOKEN)
    message = VoucherSent(currency=ON_CHAIN, voucher=for_domain_of(fake))
    with pytest.raises(BadSignature):
        check_signatures(message, BUYER)
    for spelling in (ON_CHAIN.upper(), ON_CHAIN + " ", ON_CHAIN.replace(":8453", ":08453"), "eip155:8453"):
        with pytest.raises(Malformed):
            currency_of("eip155:" + spelling[7:])


def test_the_high_s_twin():
    signature = BUYER_KEY.sign_digest(digest(DOMAIN, VOUCHER))
    high = (CURVE_ORDER - int.from_bytes(signature[32:64], "big")).to_bytes(32, "big")
    with pytest.raises(BadSignature):
        recover(digest(DOMAIN, VOUCHER), signature[:32] + high + bytes((55 - signature[64],)))


@pytest.mark.parametrize("v", [0, 1, 2, 26, 29, 35, 36, 37, 255])
def test_v_of_0_1_36_and_others(v):
    signature = BUYER_KEY.sign_digest(digest(DOMAIN, VOUCHER))
    with pytest.raises(BadSignature):
        recover(digest(DOMAIN, VOUCHER), signature[:64] + bytes((v,)))


def test_a_flipped_v():
    signature = BUYER_KEY.sign_digest(digest(DOMAIN, VOUCHER))
    flipped = signature[:64] + bytes((55 - signature[64],))
    with pytest.raises(BadSignature):
        check(DOMAIN, Signed(document=VOUCHER, signature=flipped), BUYER)


def test_ecrecover_zero_and_a_zero_signer():
    for signature in (bytes(65), bytes(64) + b"\x1b", b"\0" * 32 + b"\1" * 32 + b"\x1c"):
        with pytest.raises(BadSignature):
            recover(bytes(32), signature)
        with pytest.raises(BadSignature):
            check(DOMAIN, Signed(document=VOUCHER, signature=signature), ZERO_ADDRESS)
    with pytest.raises(BadSignature, match="zero address"):
        check(DOMAIN, sign(DOMAIN, VOUCHER, BUYER_KEY), ZERO_ADDRESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """A harmless document of the very fields and values of a close."""

    channel_id: Bytes32
    cumulative: Amount


SAME_FIELDS = (
    Greeting(channel_id=b"c" * 32, cumulative=7),
    CooperativeClose(channel_id=b"c" * 32, cumulative=7),
    VOUCHER,
    channel(),
    a_tender(),
)


@pytest.mark.parametrize(
    ("signed", "taken"),
    list(permutations(SAME_FIELDS, 2)),
    ids=lambda document: type(document).__name__,
)
def test_a_voucher_signed_as_a_cooperative_close_and_every_other_pair(signed, taken):
    signature = sign(DOMAIN, signed, BUYER_KEY).signature
    with pytest.raises(BadSignature):
        check(DOMAIN, Signed(document=taken, signature=signature), BUYER)


def test_a_document_that_names_another_signer_than_its_bringer():
    stolen = sign(DOMAIN, a_tender(), BUYER_KEY)
    check_signatures(TenderSent(tender=stolen), BUYER)
    with pytest.raises(BadSignature, match="bringer"):
        check_signatures(TenderSent(tender=stolen), OTHER_KEY.address)


def hello_of(account, node, **changes) -> Hello:
    times = {"not_before_ms": 1_000, "not_after_ms": 2_000, "epoch": 1, "spend_limit": 5, "roles": Role.BUYER}
    return bind(account, node, DOMAIN, **(times | changes))


def test_peer_id_account_binding_theft():
    node, thief = PROVIDER_KEY, OTHER_KEY
    honest = hello_of(BUYER_KEY, node)
    peer, thiefs_peer = peer_id_of(node.public_key), peer_id_of(thief.public_key)
    assert check_binding(DOMAIN, honest, peer).account == BUYER
    # Shown by the thief's own node, or rewritten to name it.
    with pytest.raises(NotForUs):
        check_binding(DOMAIN, honest, thiefs_peer)
    renamed = replace(honest, binding=replace(honest.binding, peer_id=thiefs_peer))
    with pytest.raises(BadSignature):
        check_binding(DOMAIN, renamed, thiefs_peer)
    # One half of it signed by the thief: somebody's node as one's own, somebody's account as one's own.
    forged: NodeBinding = replace(honest.binding, account=thief.address)
    mine = thief.sign_digest(digest(DOMAIN, forged))
    for signatures in ((mine, honest.node_signature), (mine, mine), (honest.account_signature, mine)):
        hello = Hello(binding=forged, account_signature=signatures[0], node_signature=signatures[1])
        with pytest.raises(BadSignature):
            check_binding(DOMAIN, hello, peer)
    # An account's signature over another binding of its own.
    older = hello_of(BUYER_KEY, node, spend_limit=4)
    with pytest.raises(BadSignature):
        check_binding(DOMAIN, replace(honest, account_signature=older.account_signature), peer)


def test_no_field_of_a_binding_can_be_changed_after_it_was_signed():
    honest = hello_of(BUYER_KEY, PROVIDER_KEY)
    peer = peer_id_of(PROVIDER_KEY.public_key)
    other = {"account": OTHER_KEY.address, "peer_id": peer[:-1] + b"\0", "roles": b"\xff" * 32}
    for field in fields(NodeBinding):
        value = other.get(field.name, 9_999)
        with pytest.raises(ProtocolError):
            check_binding(DOMAIN, replace(honest, binding=replace(honest.binding, **{field.name: value})), peer)
