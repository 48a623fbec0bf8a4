"""From a buyer to the providers of its sealed jobs: the keys of their shards, for a key that is used once.

Protocol ``/hansa/keys/1``. A provider that is to start a run makes a key pair and asks with its public half; the answer
is both of the shard's keys, encrypted to it by HPKE (RFC 9180: X25519, HKDF-SHA256, ChaCha20-Poly1305). Nothing of this
is journaled or written anywhere: a provider that was restarted asks again, and what was sent over the line opens for
nobody once the provider has forgotten its half.
"""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from hansa.node.messaging.directory import Directory, Stranger
from hansa.node.messaging.outbox import NO_ROOM
from hansa.node.network.net import Context, Net, NetError, Refused
from hansa.node.storage.job_keys import JobKeys
from hansa.node.storage.sealing import SECRET_BYTES, BlobKey, ShardKeys
from hansa.proto.codec import decode, encode
from hansa.proto.errors import Malformed
from hansa.proto.protocols import KEYS, MAX_KEYS_BYTES
from hansa.proto.sealed import is_sealed
from hansa.proto.units import Bytes32

if TYPE_CHECKING:
    from collections.abc import Callable

    from hansa.node.engine.state import NodeState

SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
PATIENCE_S: Final = 120.0
"""A buyer that cannot be reached is tried again for so long: it may be restarting."""
REFUSALS: Final = 8
"""One that says no is asked again a few times: a lease may be a moment older here than there."""
RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 3.0
"""One that is busy did not say no, for strangers can make it so: it is asked again as one that cannot be reached is."""
ANSWER_MS: Final = 2_000
"""A request and its answer have some hundred bytes: whoever says half of it gives the place back soon."""
PER_PEER: Final = 4
AT_ONCE: Final = 1_024
"""As many as all connections that a node has make together, so that no crowd of strangers takes a provider's turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysWanted:
    """Provider to buyer: the keys of the shard of this lease, encrypted to this X25519 public key.

    Attributes:
        lease: a lease of the sender's that lives.
        public_key: made for this request.
    """

    lease: Bytes32
    public_key: Bytes32


class NoKeys(Exception):
    """A run's keys could not be had, and why, in words for its buyer."""


class KeyDesk:
    """A buyer's side: gives the keys of a shard to whoever has its lease."""

    def __init__(
        self, net: Net, directory: Directory, keys: JobKeys, state: "Callable[[], NodeState]", account: bytes
    ) -> None:
        """``account`` is this node's own."""
        self._net = net
        self._directory = directory
        self._keys = keys
        self._state = state
        self._account = account

    def serve(self) -> None:
        """Answer from now on."""
        self._net.serve(
            KEYS,
            self._answer,
            max_request_bytes=MAX_KEYS_BYTES,
            timeout_ms=ANSWER_MS,
            per_peer=PER_PEER,
            total=AT_ONCE,
        )

    def keys_for(self, provider: bytes, lease: bytes) -> ShardKeys | None:
        """What a provider may have of a lease; ``None`` if it is not its own, not of a sealed job, or over.

        Raises:
            NoKeys: it may, and this node has lost the job's key.
        """
        for of in self._state().jobs.live.values():
            shard = of.on(lease)
            if shard is None or shard.provider != provider or not is_sealed(of.spec.requirements):
                continue
            key = self._keys.find(of.job)
            if key is None:
                raise NoKeys("its buyer has lost the key of this sealed job")
            return key.of_shard(shard.shard)
        return None

    async def _answer(self, context: Context, data: bytes) -> bytes:
        wanted: KeysWanted = decode(data, KeysWanted, limit_bytes=MAX_KEYS_BYTES)
        provider = await self._directory.require(context.peer_id)
        try:
            keys = self.keys_for(provider, wanted.lease)
        except NoKeys as fault:
            raise Refused(str(fault)) from None
        if keys is None:
            raise Refused("no such keys for you")
        return wrap(keys, wanted, buyer=self._account, provider=provider)


def wrap(keys: ShardKeys, wanted: KeysWanted, *, buyer: bytes, provider: bytes) -> bytes:
    """A shard's keys for nobody but who made this request. Raises ``Malformed`` if its public key is none."""
    try:
        public = X25519PublicKey.from_public_bytes(wanted.public_key)
        plain = keys.shared.secret() + keys.own.secret()
        return bytes(SUITE.encrypt(plain, public, info=_info(wanted.lease, buyer, provider)))
    except ValueError:  # a point of small order, which would make everybody's secret the same
        raise Malformed("public_key", "is no key of X25519") from None


def unwrap(answer: bytes, private: X25519PrivateKey, lease: bytes, *, buyer: bytes, provider: bytes) -> ShardKeys:
    """The other way. Raises ``ValueError`` if it is not what ``wrap`` made for this request."""
    try:
        plain = SUITE.decrypt(answer, private, info=_info(lease, buyer, provider))
    except InvalidTag:
        raise ValueError("keys that were wrapped for another request") from None
    if len(plain) != 2 * SECRET_BYTES:
        raise ValueError("not two keys")
    return ShardKeys(shared=BlobKey(bytes(plain[:SECRET_BYTES])), own=BlobKey(bytes(plain[SECRET_BYTES:])))


def _info(lease: bytes, buyer: bytes, provider: bytes) -> bytes:
    """What the keys are for; each part is of one length, so none can be taken for another."""
    return KEYS.encode() + lease + buyer + provider


async def ask_for_keys(net: Net, directory: Directory, lease: bytes, *, buyer: bytes, provider: bytes) -> ShardKeys:
    """The keys of a lease of ours, from its buyer.

    Raises:
        NoKeys: it does not give them, or cannot be reached or is busy for two minutes.
    """
    private = X25519PrivateKey.generate()
    wanted = encode(KeysWanted(lease=lease, public_key=private.public_key().public_bytes_raw()))
    why, refusals, busy_s = "its buyer could not be reached", 0, RETRY_S
    with trio.move_on_after(PATIENCE_S):
        while refusals < REFUSALS:
            pause_s = RETRY_S
            try:
                peer_id = await directory.reach(buyer)
                answer = await net.request(peer_id, KEYS, wanted, max_response_bytes=MAX_KEYS_BYTES)
                return unwrap(answer, private, lease, buyer=buyer, provider=provider)
            except Refused as fault:
                why = fault.why
                if why.startswith(NO_ROOM):
                    # Jitter, so that the providers of a job do not all come back at once. Nothing secret is drawn.
                    pause_s = busy_s * random.uniform(0.7, 1.3)  # noqa: S311
                    busy_s = min(LONGEST_RETRY_S, busy_s * 2)
                else:
                    refusals += 1
            except ValueError as fault:
                why, refusals = str(fault), refusals + 1
            except (NetError, Stranger) as fault:
                why = str(fault)
            await trio.sleep(pause_s)
    raise NoKeys(f"the keys of this sealed job cannot be had: {why}")
