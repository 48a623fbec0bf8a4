"""What two nodes say over libp2p to agree on a bulk channel: ``/hansa/bulk/1``."""

from dataclasses import dataclass
from typing import Final

from hansa.proto.blob import BlobRef

MAX_MESSAGE_BYTES: Final = 2 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelWanted:
    """I will dial you, with this certificate, to fetch blobs such as this one."""

    ref: BlobRef
    certificate: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWanted:
    """I cannot dial you; dial me, and I will fetch blobs such as this one."""

    ref: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOffered:
    """You wanted me to dial you: I will, with this certificate."""

    certificate: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGranted:
    """Dial, find this certificate, and say this token first."""

    certificate: bytes
    token: bytes
