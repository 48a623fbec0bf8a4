"""A node remembers whom it was connected with, and believes nothing of a broken file."""

import json
from pathlib import Path

import pytest
from kit.memory_party import key

from hansa.node.messaging.remembered_peers import FILE_NAME, MAX_FILE_BYTES, MOST_PEERS, load_peers, save_peers
from hansa.node.network.peers import MAX_ADDRS
from hansa.proto.peer_id import peer_id_of_key

PEERS = tuple((peer_id_of_key(key(number).secret()), (f"/ip4/10.0.0.{number}/tcp/4001",)) for number in range(1, 101))


def test_what_is_saved_is_loaded_and_no_more_than_so_many(tmp_path: Path) -> None:
    save_peers(tmp_path, PEERS[:3])
    assert load_peers(tmp_path) == PEERS[:3]
    save_peers(tmp_path, PEERS)
    assert load_peers(tmp_path) == PEERS[:MOST_PEERS]
    assert (tmp_path / FILE_NAME).stat().st_size < MAX_FILE_BYTES
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_node_that_is_cut_off_keeps_what_it_knew(tmp_path: Path) -> None:
    save_peers(tmp_path, PEERS[:3])
    save_peers(tmp_path, ())
    assert load_peers(tmp_path) == PEERS[:3]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"7", b"{}", b"[" * 100_000, b"[1, null, {}, []]", b" " * (MAX_FILE_BYTES + 10) + b"[]"],
)
def test_a_broken_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    assert load_peers(tmp_path) == ()


def test_what_is_no_peer_or_no_address_is_passed_over(tmp_path: Path) -> None:
    sound, addrs = PEERS[0]
    told = [
        {"peer_id": "not a peer", "addrs": list(addrs)},
        {"peer_id": sound, "addrs": [1, None, "", "x" * 1000, *addrs, *(f"/ip4/10.1.0.{n}/tcp/1" for n in range(50))]},
        {"peer_id": [sound], "addrs": list(addrs)},
        {"peer_id": sound, "addrs": "none"},
    ]
    (tmp_path / FILE_NAME).write_text(json.dumps(told))
    ((peer_id, kept),) = load_peers(tmp_path)
    assert peer_id == sound
    assert kept[:1] == addrs
    assert len(kept) == MAX_ADDRS


def test_without_a_place_to_write_nothing_is_lost_but_the_memory(tmp_path: Path) -> None:
    save_peers(tmp_path / "missing", PEERS[:3])
    assert load_peers(tmp_path / "missing") == ()
