"""What this node says of itself: its binding, signed anew long before it ends, and whenever the clock was set.

A node runs for longer than a binding holds, and one that is dated by a wrong clock is believed by nobody, also once the
clock is right again.
"""

from collections.abc import Callable
from typing import Final

from hansa.proto.binding import Role, bind
from hansa.proto.messages import Hello
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey
from hansa.proto.units import HOUR_MS

LIFE_MS: Final = 30 * 24 * HOUR_MS
BEFORE_MS: Final = 60_000
"""So much earlier than it is signed a binding holds, for those whose clocks are a little behind."""
SLACK_MS: Final = 30_000
"""A clock that is corrected by less than this needs no new binding."""


class OwnBinding:
    """The newest binding of this node.

    Attributes:
        hello: it, and both its signatures.
    """

    def __init__(
        self, account: SigningKey, node: SigningKey, *, roles: Role, spend_limit: int, now_ms: Callable[[], int]
    ) -> None:
        """Sign the first one."""
        self._account, self._node = account, node
        self._roles, self._spend_limit, self._now_ms = roles, spend_limit, now_ms
        self.hello = self._sign()

    def renew_if_due(self) -> bool:
        """Sign anew at half of its life, or if it lies in the future by the clock of now; answers whether it did."""
        signed_ms, now_ms = self.hello.binding.not_before + BEFORE_MS, self._now_ms()
        if signed_ms - SLACK_MS <= now_ms < signed_ms + LIFE_MS // 2:
            return False
        self.hello = self._sign()
        return True

    def _sign(self) -> Hello:
        now_ms = self._now_ms()
        return bind(
            self._account,
            self._node,
            DOMAIN,
            roles=self._roles,
            spend_limit=self._spend_limit,
            not_before_ms=now_ms - BEFORE_MS,
            not_after_ms=now_ms + LIFE_MS,
            # The date, and no count: where the clock was wrong by a year, a later node of the account must not have
            # to wait for that year. The epoch decides only between two nodes of an account, and two accounts of one.
            epoch=now_ms,
        )
