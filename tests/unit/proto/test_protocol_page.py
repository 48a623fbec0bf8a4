"""What the documentation says of the protocol is what the code does, and its vectors are the code's."""

import json
import re
from pathlib import Path

import pytest
from kit import print_protocol_tables, protocol_vectors

from hansa.node.network import libp2p_autonat, libp2p_dcutr, libp2p_kad_host, libp2p_relay
from hansa.proto import history, protocols, signing
from hansa.proto.binding import check_binding
from hansa.proto.codec import decode
from hansa.proto.messages import Direct, Hello
from hansa.proto.network import DOMAIN
from hansa.scheduler.advert_classes import CLASSES

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "protocol.md").read_text()
VECTORS = json.loads((ROOT / "tests" / "vectors" / "protocol.json").read_text())


def test_the_tables_are_fresh():
    hint = "python tests/kit/print_protocol_tables.py > docs/protocol-messages.md"
    assert (ROOT / "docs" / "protocol-messages.md").read_text() == print_protocol_tables.page(), (
        f"write it anew: {hint}"
    )


def test_the_vectors_are_fresh():
    hint = "PYTHONPATH=tests python tests/kit/protocol_vectors.py > tests/vectors/protocol.json"
    assert protocol_vectors.vectors() == VECTORS, f"a change here is a change of the protocol; if it is meant: {hint}"


def test_every_protocol_is_named_on_the_page():
    names = {name for name in vars(protocols).values() if isinstance(name, str) and name.startswith("/hansa/")}
    names |= {history.HISTORY, libp2p_kad_host.KAD_PROTOCOL, libp2p_autonat.AUTONAT, libp2p_autonat.IDENTIFY}
    names |= {libp2p_relay.HOP, libp2p_relay.STOP, libp2p_dcutr.DCUTR}
    assert {name for name in names if f"`{name}" not in PAGE} == set()
    assert {name for name in CLASSES if f"`{name}`" not in PAGE} == set()
    assert f"The version is {protocols.VERSION}." in PAGE


def test_the_page_names_no_message_that_there_is_not():
    kinds = {kind.__name__ for _, kinds in print_protocol_tables.BY_PROTOCOL for kind in kinds}
    told = set(re.findall(r"`([A-Z][a-z]+[A-Z]\w+)`", PAGE)) - {"StrictSign", "HansaLedger", "HansaEscrow"}
    documents = {kind.__name__ for kind in (*print_protocol_tables.SIGNED, *print_protocol_tables.HASHED)}
    assert told <= kinds | documents


@pytest.mark.parametrize("name", sorted(VECTORS["documents"]))
def test_a_vectors_signature_is_its_signers(name):
    one = VECTORS["documents"][name]
    signer = signing.recover(bytes.fromhex(one["digest"]), bytes.fromhex(one["signature"]))
    assert signing.checksum_address(signer) == VECTORS["keys"][one["signer"]]["address"]


@pytest.mark.parametrize("name", sorted(VECTORS["frames"]))
def test_a_vectors_frame_is_read(name):
    one = VECTORS["frames"][name]
    kinds = {kind.__name__: kind for _, kinds in print_protocol_tables.BY_PROTOCOL for kind in kinds}
    read = decode(bytes.fromhex(one["frame"]), kinds[one["name"]], limit_bytes=1 << 20)
    assert protocol_vectors.plain(read) == one["fields"]


def test_a_vectors_frame_of_the_number_before_is_read_as_it_says():
    ((protocol_id, one),) = VECTORS["older_frames"].items()
    assert protocol_id == protocols.OLDER_MARKET
    read = decode(bytes.fromhex(one["frame"]), Direct, limit_bytes=1 << 20)
    assert protocol_vectors.plain(read) == one["fields"] | {"kind": one["read_as"]}


def test_the_vectors_hello_proves_its_account():
    hello = decode(bytes.fromhex(VECTORS["frames"]["hello"]["frame"]), Hello, limit_bytes=protocols.MAX_HELLO_BYTES)
    peer_id = bytes.fromhex(VECTORS["keys"]["provider's node"]["peer_id_bytes"])
    account = check_binding(DOMAIN, hello, peer_id).account
    assert signing.checksum_address(account) == VECTORS["keys"]["provider"]["address"]
