"""Joining an account and a node: each says of the other, over one digest, that the node acts for the account.

The account's key may stay cold, and the node's key is in the hands of a daemon that talks to strangers, so they are two
keys. Both sign: with the account's signature alone anybody could claim somebody else's node as their own, with the
node's alone anybody's account.
"""

from enum import IntFlag
from typing import Final

from hansa.proto.documents import NodeBinding
from hansa.proto.errors import BadSignature, NotForUs
from hansa.proto.messages import Hello
from hansa.proto.peer_id import address_of_peer, peer_id_of
from hansa.proto.signing import Signed, SigningKey, check
from hansa.proto.typed_data import Domain, digest

ROLES_BYTES: Final = 32


class Role(IntFlag):
    """What a node may do for an account: bits of the binding's ``roles``, counted from its right end."""

    PROVIDER = 1
    BUYER = 2


def bind(
    account_key: SigningKey,
    node_key: SigningKey,
    domain: Domain,
    *,
    roles: Role,
    spend_limit: int,
    not_before_ms: int,
    not_after_ms: int,
    epoch: int,
) -> Hello:
    """Sign a binding with both keys; the answer is what the node says first on every connection.

    Args:
        account_key: the account's key.
        node_key: the node's key; its peer id goes into the binding.
        domain: where the binding counts.
        roles: what the node may do.
        spend_limit: what it says that it would spend on a job, in smallest units. Nothing enforces it.
        not_before_ms: from when it holds, in ms UTC.
        not_after_ms: until when it holds, in ms UTC.
        epoch: higher than in every earlier binding of this account.

    Raises:
        ValueError: the two keys are one, or the time is empty.
    """
    if account_key.address == node_key.address:
        raise ValueError("a node's key and its account's key must be two keys")
    if not_before_ms >= not_after_ms:
        raise ValueError("a binding must end after it begins")
    binding = NodeBinding(
        account=account_key.address,
        peer_id=peer_id_of(node_key.public_key),
        roles=int(roles).to_bytes(ROLES_BYTES, "big"),
        spend_limit=spend_limit,
        not_before=not_before_ms,
        not_after=not_after_ms,
        epoch=epoch,
    )
    signed_digest = digest(domain, binding)
    return Hello(
        binding=binding,
        account_signature=account_key.sign_digest(signed_digest),
        node_signature=node_key.sign_digest(signed_digest),
    )


def check_binding(domain: Domain, hello: Hello, peer_id: bytes) -> NodeBinding:
    """Make sure that a binding is about this peer and that its account and its node both signed it.

    Whether it holds now and for what is the caller's next question: ``holds_at`` and ``may``.

    Args:
        domain: the domain in which it must count.
        hello: the binding and its two signatures, as they came.
        peer_id: the peer whose control of its key the connection has proved, as multihash bytes.

    Raises:
        NotForUs: it names another peer.
        Malformed: it names no secp256k1 peer, or a field is not of its exact type, length or range.
        BadSignature: one of the two signatures is not canonical, or not by the one who should have signed.
    """
    binding = hello.binding
    if binding.peer_id != peer_id:
        raise NotForUs("NodeBinding.peerId", "names another peer")
    node = address_of_peer(binding.peer_id)
    if binding.account == node:
        raise BadSignature("NodeBinding.account", "is the node itself: the two keys must be two")
    check(domain, Signed(document=binding, signature=hello.account_signature), binding.account)
    check(domain, Signed(document=binding, signature=hello.node_signature), node)
    return binding


def holds_at(binding: NodeBinding, now_ms: int) -> bool:
    """Whether the binding holds at this time (ms UTC)."""
    return binding.not_before <= now_ms < binding.not_after


def may(binding: NodeBinding, role: Role) -> bool:
    """Whether the binding gives the node every role in ``role``."""
    return int.from_bytes(binding.roles, "big") & role == role
