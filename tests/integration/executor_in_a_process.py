"""An executor in a process of its own, which the tests can kill. Prints each event; runs until killed."""

import sys
import tempfile
from pathlib import Path

import trio
from integration.sandbox_harness import a_room, an_order

CODE = """
def main(ctx):
    ctx.report(step=1)
    while True:
        pass
"""


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with a_room() as room:
            await room.executor.start(an_order(Path(directory), CODE))
            told = 0
            while True:
                await trio.sleep(0.05)
                for event in room.events[told:]:
                    print(type(event).__name__, flush=True)
                told = len(room.events)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    trio.run(main)
