"""What a settler has begun and is not done with: each thing once at a time, and what goes wrong kept in words."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from hansa.market.settlement import Refused
from hansa.node.chain.evm_currency import WrongChain
from hansa.node.chain.evm_store import EvmStore
from hansa.node.chain.json_rpc import RpcFault
from hansa.node.plain_text import plain

Work = Callable[..., Awaitable[None]]
Failed = Callable[[Exception], None]


class Errands:
    """Everything that is under way on a chain for one node.

    Attributes:
        counters: what was done, and what went wrong, and how often.
        trouble: what is wrong now, by the name of what did not work.
        is_sound: whether the chain was found to be what the configuration says.
    """

    def __init__(self, check: Callable[[], Awaitable[None]], log: Callable[[str], None]) -> None:
        """Nothing can be begun before there is a nursery. ``check`` holds the chain against the configuration."""
        self.counters: Counter[str] = Counter()
        self.trouble: dict[str, str] = {}
        self.is_sound = False
        self._check = check
        self._log = log
        self._nursery: trio.Nursery | None = None
        self._busy: set[str] = set()

    def open(self, nursery: trio.Nursery) -> None:
        """From now on things are begun in this nursery."""
        self._nursery = nursery

    def begin(self, name: str, work: Work, *arguments: Any, failed: Failed | None = None) -> None:
        """Begin something that is not under way already.

        Args:
            name: what it is; one of a name is under way at a time.
            work: what is done.
            arguments: with what.
            failed: is told why, where it did not work.
        """
        if self._nursery is not None and name not in self._busy:
            self._busy.add(name)
            self._nursery.start_soon(self._do, name, work, arguments, failed)

    def begin_beside(self, name: str, work: Work, *arguments: Any) -> bool:
        """Begin something whatever else of its name is under way; whether anything can be begun at all."""
        if self._nursery is None:
            return False
        self._nursery.start_soon(self._do, name, work, arguments, None)
        return True

    def is_busy(self, name: str) -> bool:
        """Whether something of this name is under way."""
        return name in self._busy

    async def _do(self, name: str, work: Work, arguments: tuple[Any, ...], failed: Failed | None) -> None:
        try:
            await self.make_sure()
            await work(*arguments)
            self.trouble.pop(name, None)
        except (Refused, RpcFault, WrongChain) as fault:
            self.say(name, plain(fault, 300))
            if failed is not None:
                failed(fault)
        finally:
            self._busy.discard(name)

    async def make_sure(self) -> None:
        """Hold the chain against the configuration, once."""
        if not self.is_sound:
            await self._check()
            self.is_sound = True
            self.trouble.pop("check", None)

    def say(self, name: str, words: str) -> None:
        """Keep what is wrong for whoever asks; it goes to the log when it is new."""
        self.counters[f"chain: {name.split(maxsplit=1)[0]} did not work"] += 1
        if self.trouble.get(name) != words:
            self._log(f"chain: {name[:40]}: {words}")
        self.trouble[name] = words


class FirstSeen:
    """When things were first seen so, in this life of the daemon or an earlier one."""

    def __init__(self, store: EvmStore, now_ms: Callable[[], int]) -> None:
        """What was seen in an earlier life is in the store."""
        self._store = store
        self._now_ms = now_ms
        self._known: dict[str, int] = {}

    def since_ms(self, word: str) -> int:
        """Since when; from now on, if never before."""
        if word not in self._known:
            kept = self._store.word(word)
            if kept is None:
                kept = str(self._now_ms())
                self._store.keep_word(word, kept)
            self._known[word] = int(kept)
        return self._known[word]
