"""An account is believed only of the node that proves it with both keys, now."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import LIFE_MS, Party, bent, hello_of, key, now_ms, party

from hansa.node.messaging import directory
from hansa.node.messaging.directory import Stranger
from hansa.node.network.net import Context, Refused, RemoteFault
from hansa.proto.codec import encode
from hansa.proto.messages import Hello
from hansa.proto.protocols import HELLO, MAX_HELLO_BYTES
from hansa.proto.signing import SigningKey

pytestmark = pytest.mark.trio


def expired(account: SigningKey, node: SigningKey) -> Hello:
    return hello_of(account, node, not_after_ms=now_ms() - 1)


def too_early(account: SigningKey, node: SigningKey) -> Hello:
    return hello_of(account, node, not_before_ms=now_ms() + 1_000)


def account_bent(account: SigningKey, node: SigningKey) -> Hello:
    hello = hello_of(account, node)
    return replace(hello, account_signature=bent(hello.account_signature))


def node_bent(account: SigningKey, node: SigningKey) -> Hello:
    hello = hello_of(account, node)
    return replace(hello, node_signature=bent(hello.node_signature))


def anothers_node(account: SigningKey, _: SigningKey) -> Hello:
    return hello_of(account, key(5_000))


def anothers_account(_: SigningKey, node: SigningKey) -> Hello:
    hello = hello_of(key(6_000), node)
    return replace(hello, account_signature=key(6_001).sign_digest(bytes(32)))


BAD: tuple[Callable[[SigningKey, SigningKey], Hello], ...] = (
    account_bent,
    node_bent,
    anothers_node,
    anothers_account,
)


async def test_two_nodes_that_meet_know_each_others_accounts() -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as two:
        one.knows(two)
        assert await one.directory.meet(two.peer_id) == two.account.address
        assert two.directory.account_of(one.peer_id) == one.account.address, "one hello introduces both"
        assert await two.directory.reach(one.account.address) == one.peer_id
        assert one.strikes(two) == two.strikes(one) == 0


@pytest.mark.parametrize("hello", BAD)
async def test_who_proves_nothing_is_refused_and_struck(hello: Callable[[SigningKey, SigningKey], Hello]) -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2, hello=hello) as liar:
        one.knows(liar)
        with pytest.raises(Stranger):
            await one.directory.meet(liar.peer_id)
        assert one.strikes(liar) == 1
        assert one.directory.account_of(liar.peer_id) is None
        with pytest.raises(Refused, match="prove your account first"):
            await one.directory.require(liar.peer_id)


@pytest.mark.parametrize("hello", BAD)
async def test_who_comes_with_a_bad_hello_is_struck_and_gets_none(
    hello: Callable[[SigningKey, SigningKey], Hello],
) -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2, hello=hello) as liar:
        liar.knows(one)
        with pytest.raises(RemoteFault):
            await liar.net.request(one.peer_id, HELLO, encode(liar.hello))
        assert one.strikes(liar) == 1
        assert one.directory.account_of(liar.peer_id) is None


@pytest.mark.parametrize("hello", [expired, too_early])
async def test_a_binding_out_of_date_proves_nothing_and_is_no_strike(
    hello: Callable[[SigningKey, SigningKey], Hello],
) -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2, hello=hello) as late:
        one.knows(late)
        late.knows(one)
        with pytest.raises(Stranger, match="clocks differ"):
            await one.directory.meet(late.peer_id)
        with pytest.raises(Refused, match="clocks differ"):
            await late.net.request(one.peer_id, HELLO, encode(late.hello))
        assert one.strikes(late) == late.strikes(one) == 0
        assert one.directory.account_of(late.peer_id) is None
        assert one.directory.counters == {directory.CLOCKS_DIFFER: 2}


@pytest.mark.parametrize("answer", [b"", b"\xc1", b"\x00" * MAX_HELLO_BYTES, encode("hello")])
async def test_a_hello_that_is_none_is_a_strike(answer: bytes) -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as liar:

        async def reply(_context: Context, _data: bytes) -> bytes:
            return answer

        liar.net.serve(HELLO, reply)
        one.knows(liar)
        with pytest.raises(Stranger):
            await one.directory.meet(liar.peer_id)
        assert one.strikes(liar) == 1


async def test_nobody_is_struck_for_being_away_and_a_name_that_is_none_is_a_stranger() -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as two:
        one.knows(two)
        hub.link_cut(one.peer_id, two.peer_id)
        for name in (two.peer_id, "", "16Uiu2nobody", "\x00"):
            with pytest.raises(Stranger):
                await one.directory.meet(name)
        assert one.strikes(two) == 0


async def test_a_binding_that_ran_out_must_be_proved_again(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as two:
        one.knows(two)
        await one.directory.meet(two.peer_id)
        await trio.sleep(LIFE_MS / 1000 - 1)
        assert one.directory.account_of(two.peer_id) == two.account.address
        await trio.sleep(1)
        assert one.directory.account_of(two.peer_id) is None
        with pytest.raises(Stranger):
            await one.directory.reach(two.account.address)


async def test_an_account_that_nobody_speaks_for_is_not_reached() -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as two:
        one.knows(two)
        with pytest.raises(Stranger, match="no node is known"):
            await one.directory.reach(key(77).address)
        one.directory.hint(key(77).address, two.peer_id)
        with pytest.raises(Stranger, match="speaks for another"):
            await one.directory.reach(key(77).address)


async def test_an_account_that_moved_is_found_at_its_new_node_and_never_drawn_back() -> None:
    hub = MemoryHub()

    def newer(account: SigningKey, node: SigningKey) -> Hello:
        return hello_of(account, node, epoch=2)

    async with party(hub, 1) as one, party(hub, 2) as old, party(hub, 2, node=3_000, hello=newer) as new:
        one.knows(old)
        one.knows(new)
        account = old.account.address
        one.directory.hint(account, old.peer_id)
        assert await one.directory.reach(account) == old.peer_id
        one.directory.hint(account, new.peer_id)
        assert await one.directory.reach(account) == new.peer_id, "the newest advert says where it is now"
        await replay(old, one)
        assert await one.directory.reach(account) == new.peer_id


async def replay(old: Party, to: Party) -> None:
    """Say hello with a binding that was replaced since."""
    old.knows(to)
    with pytest.raises(RemoteFault):
        await old.net.request(to.peer_id, HELLO, encode(old.hello))


async def test_a_node_changes_its_account_only_with_a_newer_binding() -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as two:
        two.knows(one)
        await two.net.request(one.peer_id, HELLO, encode(two.hello))
        other = hello_of(key(9), two.node, epoch=1)
        with pytest.raises(RemoteFault):
            await two.net.request(one.peer_id, HELLO, encode(other))
        assert one.directory.account_of(two.peer_id) == two.account.address
        await two.net.request(one.peer_id, HELLO, encode(hello_of(key(9), two.node, epoch=2)))
        assert one.directory.account_of(two.peer_id) == key(9).address


async def test_those_with_another_time_are_remembered_up_to_a_bound_that_any_number_of_others_does_not_outweigh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(directory, "MOST_DOUBTS", 3)
    hub = MemoryHub()
    async with party(hub, 1) as one:
        for number in range(10, 14):
            async with party(hub, number) as right:
                one.knows(right)
                await one.directory.meet(right.peer_id)
        for number in range(20, 25):
            async with party(hub, number, hello=expired) as late:
                one.knows(late)
                with pytest.raises(Stranger):
                    await one.directory.meet(late.peer_id)
        assert len(one.directory._other_times) == 3
        assert one.directory.clocks_differ


async def test_strangers_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MOST_KNOWN", 3)
    hub = MemoryHub()
    async with party(hub, 1) as one:
        for number in range(10, 18):
            async with party(hub, number) as each:
                one.knows(each)
                await one.directory.meet(each.peer_id)
                one.directory.hint(key(number + 50).address, each.peer_id)
        assert len(one.directory._bindings) == len(one.directory._peers) == len(one.directory._hints) == 3


async def test_a_node_whose_own_clock_is_ahead_is_told_so_by_those_who_refuse_its_date() -> None:
    """By its clock nobody else's date is wrong: it hears of it only where it is refused."""
    hub = MemoryHub()
    async with party(hub, 1, hello=too_early) as ahead, party(hub, 2) as two, party(hub, 3) as three:
        for other in (two, three):
            ahead.knows(other)
            other.knows(ahead)
            with pytest.raises(Stranger):
                await other.directory.meet(ahead.peer_id)
            assert not ahead.directory.clocks_differ
        for other in (two, three):
            assert await ahead.directory.welcome(other.peer_id) == other.account.address
        assert ahead.directory.clocks_differ
        assert ahead.directory.counters == {directory.CLOCKS_DIFFER: 2}
        right = hello_of(ahead.account, ahead.node)
        await ahead.directory.introduce(right, [two.peer_id, three.peer_id])
        assert not ahead.directory.clocks_differ


async def test_who_connects_is_told_our_date_until_a_few_have_taken_it() -> None:
    hub, heard_by = MemoryHub(), []

    async def welcomed(one: Party, number: int) -> None:
        async with party(hub, number) as each:

            async def answer(context: Context, data: bytes) -> bytes:
                heard_by.append(number)
                return await each.directory._answer(context, data)

            one.knows(each)
            each.knows(one)
            await each.directory.meet(one.peer_id)
            each.net.serve(HELLO, answer)
            assert await one.directory.welcome(each.peer_id) == each.account.address

    async with party(hub, 1) as one:
        for number in range(10, 16):
            await welcomed(one, number)
    assert heard_by == list(range(10, 10 + directory.ENOUGH_TAKEN))


async def test_a_refusal_for_another_reason_says_nothing_of_clocks() -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as two:

        async def busy(_context: Context, _data: bytes) -> bytes:
            raise Refused("busy: more hellos than one peer may say")

        two.net.serve(HELLO, busy)
        one.knows(two)
        with pytest.raises(Stranger):
            await one.directory.meet(two.peer_id)
        assert not one.directory.clocks_differ


async def test_most_peers_with_another_time_are_worth_a_word_and_fewer_are_not() -> None:
    hub = MemoryHub()
    async with (
        party(hub, 1) as one,
        party(hub, 2, hello=expired) as two,
        party(hub, 3, hello=too_early) as three,
        party(hub, 4) as right,
    ):
        one.knows(right)
        await one.directory.meet(right.peer_id)
        for late, told in ((two, False), (three, True)):
            one.knows(late)
            with pytest.raises(Stranger):
                await one.directory.meet(late.peer_id)
            assert one.directory.clocks_differ is told
        three.knows(one)
        await three.net.request(one.peer_id, HELLO, encode(hello_of(three.account, three.node)))
        assert not one.directory.clocks_differ
