"""Python's collector of garbage, which stops everything while it works.

What a node has when it has started (some 700,000 objects, most of them of libraries) stays for as long as the node
runs. A full collection looks at each of them, takes 110 to 170 ms, and comes the more often the more strangers come
and go: whoever asked something meanwhile waits. Set aside once, they are never looked at again, and a full collection
is about what came since.
"""

import gc

import trio

STARTED_S = 5.0
"""By then the rooms are open, and what is imported late has been."""


async def set_started_things_aside() -> None:
    """Collect once, and have the collector forget what is left.

    For a process that is one node and nothing else: rings of objects that are here now and are dropped later are kept.
    """
    await trio.sleep(STARTED_S)
    gc.collect()
    gc.freeze()
