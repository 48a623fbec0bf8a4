"""How often a provider says again what it has: rarer the more of them there are, so that hearing them costs the same.

With ``n`` providers in a class each advert comes every ``SHARE_MS * n``, so the class as a whole says at most
``1000 / SHARE_MS`` a second however large it grows. What is paid for that is how long the advert of a provider that
vanished without a word stands.
"""

SHARE_MS = 200
FIRST_EVERY_MS = 15_000
LAST_EVERY_MS = 15 * 60_000
LIVES = 4
"""An advert outlives so many of its successors, should they be lost."""
LONGEST_LIFE_MS = LIVES * LAST_EVERY_MS
"""An advert that claims to stand for longer is not kept: it could not be taken back."""
CHANGES_FOR_EACH = 10
"""News of changes may come so many times as often as the advert is said anew."""
FIRST_PAUSE_MS = 1_000
FEW_NEIGHBOURS = 4


def every_ms(providers: int) -> int:
    """How long after its last advert a provider says the next, with so many others in its class."""
    return min(LAST_EVERY_MS, max(FIRST_EVERY_MS, SHARE_MS * providers))


def life_ms(providers: int) -> int:
    """For how long an advert is to stand."""
    return LIVES * every_ms(providers)


def pause_ms(providers: int) -> int:
    """The least time between two adverts, whatever changes."""
    return max(FIRST_PAUSE_MS, every_ms(providers) // CHANGES_FOR_EACH if every_ms(providers) > FIRST_EVERY_MS else 0)


def was_hardly_heard(neighbours_then: int, neighbours_now: int) -> bool:
    """Whether an advert is to be said anew because, when it was said, there was hardly anybody to pass it on."""
    return neighbours_then < FEW_NEIGHBOURS and neighbours_now > neighbours_then
