"""How strongly runs are walled in, as adverts, bids and tenders name it: an order, so that more is never refused."""

from typing import Final

from hansa.proto.market_documents import TIER_GVISOR, TIER_MICROVM, TIER_NONE, TIER_SANDBOX, TIER_TEE

STRENGTH: Final = (TIER_NONE, TIER_SANDBOX, TIER_GVISOR, TIER_MICROVM, TIER_TEE)
"""From the weakest to the strongest: no promise; namespaces and a filter on the machine's own kernel; a second kernel
as a process; a second kernel under the processor's own walls; one whose memory the machine's owner cannot read."""


def is_served(wanted: str, given: str) -> bool:
    """Whether a job that asks for one isolation may run in the other. A word that nobody knows equals only itself."""
    if wanted in ("", TIER_NONE, given):
        return True
    return wanted in STRENGTH and given in STRENGTH and STRENGTH.index(given) >= STRENGTH.index(wanted)
