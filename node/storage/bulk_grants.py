"""Who may knock for a bulk channel: one certificate, one token, once, within seconds."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

TOKEN_BYTES: Final = 32
GRANT_LIFE_S: Final = 10.0
MOST_GRANTS: Final = 64
MOST_GRANTS_OF_ONE: Final = 4

Purpose = Literal["fetch", "serve"]
"""What the one who knocks will do on the channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkGrant:
    """One channel that somebody may open."""

    token: bytes
    peer_id: str
    certificate: bytes
    purpose: Purpose
    until_s: float


class BulkGrants:
    """Those that were given and not used yet. Time comes in from outside."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """``count`` hears of everything that is refused, by reason."""
        self._count = count
        self._open: dict[bytes, BulkGrant] = {}

    def give(self, peer_id: str, certificate: bytes, purpose: Purpose, now_s: float) -> BulkGrant | None:
        """Let this peer knock once, unless too many may already."""
        self._forget_old(now_s)
        if sum(grant.peer_id == peer_id for grant in self._open.values()) >= MOST_GRANTS_OF_ONE:
            self._count("bulk.peer_grants_full")
            return None
        if len(self._open) >= MOST_GRANTS:
            self._count("bulk.grants_full")
            return None
        grant = BulkGrant(
            token=secrets.token_bytes(TOKEN_BYTES),
            peer_id=peer_id,
            certificate=certificate,
            purpose=purpose,
            until_s=now_s + GRANT_LIFE_S,
        )
        self._open[grant.token] = grant
        return grant

    def certificates(self, now_s: float) -> list[bytes]:
        """Whose handshake may pass at the moment."""
        self._forget_old(now_s)
        return list(dict.fromkeys(grant.certificate for grant in self._open.values()))

    def redeem(self, token: bytes, certificate: bytes, now_s: float) -> BulkGrant | None:
        """Use a grant up. None, and it is used up all the same, if it is another's."""
        self._forget_old(now_s)
        grant = self._open.pop(token, None)
        if grant is None:
            self._count("bulk.token_unknown")
            return None
        if grant.certificate != certificate:
            self._count("bulk.token_of_another")
            return None
        return grant

    def _forget_old(self, now_s: float) -> None:
        for token in [token for token, grant in self._open.items() if grant.until_s <= now_s]:
            del self._open[token]
            self._count("bulk.grant_expired")
