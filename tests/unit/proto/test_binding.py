"""A node acts for an account only when both say so."""

from dataclasses import replace

import pytest

from hansa.proto.binding import Role, bind, check_binding, holds_at, may
from hansa.proto.documents import escrow_domain, ledger_domain
from hansa.proto.errors import BadSignature, Malformed, NotForUs
from hansa.proto.peer_id import peer_id_of
from hansa.proto.signing import SigningKey
from hansa.proto.typed_data import digest

ACCOUNT = SigningKey(b"\x01" * 32)
NODE = SigningKey(b"\x02" * 32)
THIEF = SigningKey(b"\x03" * 32)
DOMAIN = ledger_domain(bytes(32))
PEER = peer_id_of(NODE.public_key)


def bound(account=ACCOUNT, node=NODE, roles=Role.PROVIDER, domain=DOMAIN):
    return bind(
        account, node, domain, roles=roles, spend_limit=5_000_000, not_before_ms=1_000, not_after_ms=2_000, epoch=1
    )


def test_a_binding_signed_by_both_passes():
    binding = check_binding(DOMAIN, bound(), PEER)
    assert (binding.account, binding.peer_id) == (ACCOUNT.address, PEER)
    assert [holds_at(binding, now_ms) for now_ms in (999, 1_000, 1_999, 2_000)] == [False, True, True, False]
    assert may(binding, Role.PROVIDER)
    assert not may(binding, Role.BUYER)
    assert not may(binding, Role.PROVIDER | Role.BUYER)
    assert may(check_binding(DOMAIN, bound(roles=Role.PROVIDER | Role.BUYER), PEER), Role.BUYER)


def test_a_thief_binds_neither_anothers_node_nor_anothers_account():
    good = bound()
    thiefs_node = peer_id_of(THIEF.public_key)
    # The thief's account claims our node: the node never signed that.
    claimed = replace(good.binding, account=THIEF.address)
    signature = THIEF.sign_digest(digest(DOMAIN, claimed))
    for node_signature in (good.node_signature, signature):
        with pytest.raises(BadSignature):
            check_binding(
                DOMAIN, replace(good, binding=claimed, account_signature=signature, node_signature=node_signature), PEER
            )
    # The thief's node claims our account: the account never signed that.
    claimed = replace(good.binding, peer_id=thiefs_node)
    signature = THIEF.sign_digest(digest(DOMAIN, claimed))
    for account_signature in (good.account_signature, signature):
        with pytest.raises(BadSignature):
            check_binding(
                DOMAIN,
                replace(good, binding=claimed, node_signature=signature, account_signature=account_signature),
                thiefs_node,
            )


def test_a_good_binding_shown_by_another_peer_is_not_for_us():
    with pytest.raises(NotForUs):
        check_binding(DOMAIN, bound(), peer_id_of(THIEF.public_key))


def test_swapped_or_bent_signatures_and_other_domains_are_refused():
    good = bound()
    for bad in (
        replace(good, account_signature=good.node_signature, node_signature=good.account_signature),
        replace(good, account_signature=good.node_signature),
        replace(good, node_signature=good.account_signature),
        replace(good, account_signature=bytes(65)),
        replace(good, node_signature=b""),
        replace(good, binding=replace(good.binding, spend_limit=6_000_000)),
        replace(good, binding=replace(good.binding, epoch=2)),
        bound(domain=escrow_domain(1, bytes(20))),
    ):
        with pytest.raises(BadSignature):
            check_binding(DOMAIN, bad, PEER)


def test_a_peer_id_without_a_key_is_malformed():
    good = bound()
    with pytest.raises(Malformed):
        check_binding(DOMAIN, replace(good, binding=replace(good.binding, peer_id=b"x")), b"x")


def test_the_two_keys_are_two():
    with pytest.raises(ValueError, match="two keys"):
        bound(account=NODE)
    good = bound()
    binding = replace(good.binding, account=NODE.address)
    signature = NODE.sign_digest(digest(DOMAIN, binding))
    alone = replace(good, binding=binding, account_signature=signature, node_signature=signature)
    with pytest.raises(BadSignature, match="must be two"):
        check_binding(DOMAIN, alone, PEER)


def test_a_binding_has_some_time_to_hold():
    with pytest.raises(ValueError, match="end after"):
        bind(ACCOUNT, NODE, DOMAIN, roles=Role.BUYER, spend_limit=0, not_before_ms=5, not_after_ms=5, epoch=1)
