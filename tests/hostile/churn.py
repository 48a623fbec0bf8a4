"""Nodes that come and go for half an hour beside one that stays, and what that leaves behind: ``make churn``.

    python tests/hostile/churn.py [--minutes 30] [--every-s 2]

The one that stays is a whole daemon in a process of its own. Every few seconds a node comes: it connects, proves an
account, advertises, asks whom the other knows and compares books; some seconds later it goes, in the midst of whatever
it does, and one in three without a word, its sockets cut. Now and then one comes back under its old name. Prints the
daemon's tasks, streams, connections, files and memory and how they grow in an hour, by a straight line through the
second half. Ends with status 1 if anything is left a minute after the last has gone, or memory still grows.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trio
from hostile.siege import SUBJECT, Watched
from kit.memory_party import DEVICE

from hansa.node.messaging.book import Book
from hansa.node.messaging.directory import Directory, Stranger
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.peer_exchange import PeerExchange
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.net import NetConfig
from hansa.proto.binding import Role, bind
from hansa.proto.market_documents import Advert
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey, sign

REST_S = 60.0
"""What a peer leaves behind may take so long to be noticed and put away."""
NAMES = ("tasks", "streams", "connections", "files", "blocks", "memory_bytes")
LEFT_OVER = {"tasks": 8, "streams": 0, "connections": 0, "files": 4}
MOST_GROWTH = 0.05


def now_ms() -> int:
    """UTC."""
    return time.time_ns() // 1_000_000


async def take_part(net: Libp2pNet, secret: bytes, at: str, seconds: float) -> None:
    """Do what a provider does, for so long."""
    account = SigningKey(bytes(reversed(secret)))
    hello = bind(
        account,
        SigningKey(secret),
        DOMAIN,
        roles=Role.PROVIDER,
        spend_limit=0,
        not_before_ms=now_ms() - 60_000,
        not_after_ms=now_ms() + 3_600_000,
        epoch=now_ms(),
    )
    directory = Directory(net, hello, now_ms)
    directory.serve()
    book = Book(net, now_ms, lambda _advert: None)
    discovery = Discovery(net, book, now_ms, account=account.address, useful=lambda: {"cpu"})
    discovery.serve()
    advert = Advert(
        signer=account.address,
        peer_id=net.peer_id,
        addresses=net.addrs(),
        devices=(DEVICE,),
        free=1,
        tier="sandbox",
        features=(),
        region="eu-west",
        facts=(),
        currency="USD",
        price_e18_per_device_ms=10**15,
        sequence=now_ms(),
        expires_ms=now_ms() + 20_000,
    )
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discovery.run)
            nursery.start_soon(PeerExchange(net).run)
            try:
                await directory.meet(at)
            except Stranger as fault:
                print(f"an honest node was not met: {fault}")
            await book.publish(sign(DOMAIN, advert, account))
            await discovery.sync.pull(at)
            await trio.sleep_forever()


async def visit(addr: str, secret: bytes, chance: random.Random) -> None:
    """Come, take part, and go."""
    async with open_net(NetConfig(bootstrap=(addr,)), secret) as net:
        await take_part(net, secret, addr.rpartition("/p2p/")[2], chance.uniform(1, 20))
        if chance.random() < 1 / 3:
            for connection in net._swarm.get_connections():
                # The socket itself, so that neither the multiplexer nor noise says good-bye.
                stream = connection.muxed_conn.secured_conn
                await stream.close()


async def churn(watched: Watched, options: argparse.Namespace) -> tuple[int, int]:
    """Let them come and go; answers how many came, and how many figures there were before the rest."""
    chance = random.Random(options.seed)
    secrets = [os.urandom(32) for _ in range(40)]
    came = 0
    while not watched.figures:  # noqa: ASYNC110  # how it is before anybody has come
        await trio.sleep(0.1)
    until = trio.current_time() + 60 * options.minutes
    async with trio.open_nursery() as nursery:
        while trio.current_time() < until:
            # An old name comes back now and then; two of one name at once put one another out, as they should.
            secret = chance.choice(secrets) if chance.random() < 0.3 else os.urandom(32)
            nursery.start_soon(visit, watched.addr, secret, chance)
            came += 1
            await trio.sleep(chance.uniform(0.5, 1.5) * options.every_s)
    counted = len(watched.figures)
    await trio.sleep(REST_S)
    return came, counted


def per_hour(row: list[float]) -> float:
    """How a figure that is told every second grows."""
    return statistics.linear_regression(range(len(row)), row).slope * 3600


def judge(figures: list[dict[str, Any]], counted: int) -> list[str]:
    """Print what there is and answer what does not hold."""
    wrong = []
    for name in NAMES:
        row = [float(each[name]) for each in figures]
        late = row[counted // 2 : counted]
        growth = per_hour(late)
        print(f"{name:13} start {row[0]:>14.0f} most {max(row):>14.0f} end {row[-1]:>14.0f}  {growth:+.1f} an hour")
        if name in LEFT_OVER and row[-1] > row[0] + LEFT_OVER[name]:
            wrong.append(f"{name} are left over")
        if name == "memory_bytes":
            tenth = max(1, len(late) // 10)
            grew = statistics.median(late[-tenth:]) / statistics.median(late[:tenth]) - 1
            print(f"memory grew by {grew:+.1%} in the second half")
            if grew > MOST_GROWTH:
                wrong.append("memory still grows")
    return wrong


def main() -> int:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every-s", type=float, default=2.0, help="a node comes so often, by and large")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    process = subprocess.Popen(
        [sys.executable, str(SUBJECT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    try:
        watched = Watched(process)

        async def both() -> tuple[int, int]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: trio.to_thread.run_sync(watched.watch, abandon_on_cancel=True))
                told = await churn(watched, options)
                nursery.cancel_scope.cancel()
            return told

        came, counted = trio.run(both)
        fell = process.poll() is not None
    finally:
        process.kill()
        process.wait()
    print(f"{came} nodes came and went in {options.minutes:g} minutes")
    wrong = judge(watched.figures, counted) + ["the daemon fell"] * fell
    print("holds" if not wrong else f"DOES NOT HOLD: {'; '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
