"""What a neighbour may tell the gossip's router: on topics that we hear, few and small, and nobody to be dialled."""

import os

import pytest
import trio
from hostile.stranger import a_stranger
from hypothesis import given
from hypothesis import strategies as st
from kit.peer_frames import MESH, framed
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.libp2p_pubsub import LONGEST_PAUSE_S, MAX_CONTROLS, MAX_IDS, cleaned_control
from hansa.node.network.net import NetConfig, Verdict

TOPIC = "/hansa/adverts/1/cpu"
STRANGE = [f"/hansa/{number}" for number in range(300)]


def control(**told: object) -> rpc_pb2.ControlMessage:
    return rpc_pb2.ControlMessage(**told)


def test_what_an_honest_neighbour_says_passes_as_it_was():
    told = control(
        graft=[rpc_pb2.ControlGraft(topicID=TOPIC)],
        prune=[rpc_pb2.ControlPrune(topicID=TOPIC, backoff=60)],
        ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"one", b"two"])],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"one", b"two"])],
    )
    assert cleaned_control(told, {TOPIC}).control == told


def test_topics_that_we_do_not_hear_do_not_reach_the_router():
    told = control(
        graft=[rpc_pb2.ControlGraft(topicID=each) for each in STRANGE],
        prune=[rpc_pb2.ControlPrune(topicID=each) for each in STRANGE],
        ihave=[rpc_pb2.ControlIHave(topicID=each, messageIDs=[b"x"]) for each in STRANGE],
    )
    assert cleaned_control(told, {TOPIC}) == rpc_pb2.RPC()


def test_a_message_is_asked_for_once_in_an_rpc_however_often_it_is_named():
    """Each time it would be sent: a quarter of a mebibyte of ids would make hundreds of mebibytes of answer."""
    told = control(iwant=[rpc_pb2.ControlIWant(messageIDs=[b"same"] * 500)] * 3)
    assert list(cleaned_control(told, {TOPIC}).control.iwant) == [rpc_pb2.ControlIWant(messageIDs=[b"same"])]


def test_nobody_is_stored_or_dialled_because_a_neighbour_names_them():
    stranger = rpc_pb2.PeerInfo(peerID=os.urandom(40), signedPeerRecord=os.urandom(100))
    told = control(prune=[rpc_pb2.ControlPrune(topicID=TOPIC, peers=[stranger], backoff=1 << 60)])
    (pruned,) = cleaned_control(told, {TOPIC}).control.prune
    assert not pruned.peers
    assert pruned.backoff == LONGEST_PAUSE_S


TOPICS = st.sampled_from([TOPIC, "/hansa/strange", ""])
IDS = st.lists(st.binary(max_size=400), max_size=3).flatmap(lambda few: st.sampled_from([few, few * 40]))


@given(st.lists(st.tuples(TOPICS, IDS, st.integers(0, (1 << 64) - 1)), max_size=100))
def test_whatever_is_told_little_of_it_is_left(told):
    clean = cleaned_control(
        control(
            prune=[rpc_pb2.ControlPrune(topicID=topic, backoff=pause) for topic, _, pause in told],
            ihave=[rpc_pb2.ControlIHave(topicID=topic, messageIDs=ids) for topic, ids, _ in told],
            iwant=[rpc_pb2.ControlIWant(messageIDs=ids) for _, ids, _ in told],
        ),
        {TOPIC},
    ).control
    assert len(clean.prune) <= MAX_CONTROLS
    assert sum(len(each.messageIDs) for each in clean.iwant) <= MAX_IDS
    assert {each.topicID for each in (*clean.prune, *clean.ihave)} <= {TOPIC}
    assert all(len(each.messageIDs) <= MAX_IDS for each in clean.ihave)


@pytest.mark.trio
async def test_pauses_on_topics_that_nobody_hears_are_not_kept():
    told = rpc_pb2.RPC(control=control(prune=[rpc_pb2.ControlPrune(topicID=each, backoff=9) for each in STRANGE]))
    async with open_net(NetConfig(), os.urandom(32)) as net:
        net.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        async with a_stranger(net.addrs()[0]) as stranger:
            await stranger.say(MESH, framed(MESH, told.SerializeToString()), ends=False)
            with trio.fail_after(20):
                while not net.counters().get("gossip.control_cut"):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert not set(net._pubsub.router.back_off) & set(STRANGE)


@pytest.mark.trio
@pytest.mark.parametrize("field", ["from_id", "seqno"])
async def test_a_message_with_an_endless_name_is_malformed_at_once(field):
    """To write such a name in base58 takes time that grows with its square: half a minute for this one."""
    async with open_net(NetConfig(), os.urandom(32)) as net:
        net.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        async with a_stranger(net.addrs()[0]) as stranger:
            own = ID.from_pubkey(stranger.peer.keys.public_key).to_bytes()
            fields = {"data": b"x", "topicIDs": [TOPIC], "from_id": own, "seqno": b"12345678", "signature": b"s" * 64}
            said = rpc_pb2.Message(**{**fields, field: b"\xff" * 200_000})
            await stranger.say(MESH, framed(MESH, rpc_pb2.RPC(publish=[said]).SerializeToString()), ends=False)
            with trio.fail_after(20):
                while not net.counters().get("gossip.malformed"):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert sum(peer.strikes for peer in net.peers()) == 1
