"""What can be wrong with a peer's bytes.

Raised only while decoding or checking something a peer sent. The caller closes the stream and counts a strike against
the peer; the daemon itself is fine. Each error carries its facts as fields, so nobody ever parses a message.
"""


class ProtocolError(Exception):
    """A peer sent something that the protocol does not allow.

    Attributes:
        where: the message, document or field that was being read, e.g. ``"Bid.expires_ms"``.
        why: one clause in words, without the peer's own bytes in it (they may be hostile to a terminal).
    """

    def __init__(self, where: str, why: str) -> None:
        """Keep the facts as fields."""
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class Malformed(ProtocolError):
    """The bytes are no message: wrong shape, type, range or encoding."""


class TooLarge(ProtocolError):
    """A length is over its limit. Raised before the bytes behind the length are read or kept."""


class UnsupportedVersion(ProtocolError):
    """The message speaks a version of the protocol that this node does not."""


class BadSignature(ProtocolError):
    """A signature is malformed, not in its one canonical form, or not by the one who is named as signer."""


class NotForUs(ProtocolError):
    """A sound message that names somebody else: another domain, channel, lease or recipient."""
