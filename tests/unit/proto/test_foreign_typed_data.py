"""Typed data that brings its own types: the golden vectors' and eth-account's digests, and nothing loose."""

import copy
import json
import re
import sys
from pathlib import Path

import pytest
from eth_account.messages import encode_typed_data
from eth_utils import keccak

from hansa.proto.errors import Malformed
from hansa.proto.foreign_typed_data import encode_type_of, foreign_digest, read_types, struct_hash_of
from hansa.proto.keccak import keccak256

DATA = Path(__file__).parents[4] / "shared" / "data"
VECTORS = (Path(__file__).parents[2] / "vectors" / "eip712.json", DATA / "vectors" / "eip712.json")
IEXEC = DATA / "specs" / "iexec" / "eip712_typehash_vectors.json"


def types_of(type_string):
    return {
        name: [dict(zip(("type", "name"), field.split(" "), strict=True)) for field in listed.split(",")]
        for name, listed in re.findall(r"(\w+)\(([^)]*)\)", type_string)
    }


@pytest.mark.parametrize("path", VECTORS, ids=("here", "beside"))
def test_golden_vectors(path):
    if not path.exists():
        pytest.skip(f"these vectors are not there: {path}")
    vectors = json.loads(path.read_text())
    for vector in vectors["types"]:
        types = types_of(vector["typeString"])
        typed = {
            "types": types,
            "primaryType": vector["primaryType"],
            "domain": vectors["domain"],
            "message": vector["message"],
        }
        structs = read_types(types)
        assert "0x" + struct_hash_of(structs, vector["primaryType"], vector["message"]).hex() == vector["structHash"]
        assert "0x" + foreign_digest(typed).hex() == vector["digest"]
        assert "0x" + foreign_digest(json.dumps(typed)).hex() == vector["digest"]


@pytest.mark.skipif(not IEXEC.exists(), reason=f"the type hash vectors are not there: {IEXEC}")
def test_type_hashes_of_another_marketplace():
    for vector in json.loads(IEXEC.read_text()):
        encoded = vector["encodeType"]
        primary = encoded.partition("(")[0]
        types = types_of(encoded)
        encoded_here = encode_type_of(read_types(types), primary)
        assert encoded_here == encoded
        assert ("0x" + keccak256(encoded_here.encode()).hex() == vector["expected"]) == vector["match"]


MAIL = {
    "types": {
        "EIP712Domain": [
            {"name": "name", "type": "string"},
            {"name": "version", "type": "string"},
            {"name": "chainId", "type": "uint256"},
            {"name": "verifyingContract", "type": "address"},
        ],
        "Person": [{"name": "name", "type": "string"}, {"name": "wallets", "type": "address[]"}],
        "Mail": [
            {"name": "from", "type": "Person"},
            {"name": "to", "type": "Person[]"},
            {"name": "contents", "type": "string"},
            {"name": "flag", "type": "bool"},
            {"name": "count", "type": "uint24"},
            {"name": "delta", "type": "int16"},
            {"name": "grid", "type": "uint8[][]"},
            {"name": "blob", "type": "bytes"},
        ],
    },
    "primaryType": "Mail",
    "domain": {
        "name": "Ether Mail",
        "version": "1",
        "chainId": 1,
        "verifyingContract": "0xCcCCccccCCCCcCCCCCCcCcCccCcCCCcCcccccccC",
    },
    "message": {
        "from": {"name": "Cow", "wallets": ["0xcd2a3d9f938e13cd947ec05abc7fe734df8dd826"]},
        "to": [{"name": "Bob", "wallets": []}],
        "contents": "Hello, Bob!",
        "flag": True,
        "count": 5,
        "delta": -7,
        "grid": [[1, 2], []],
        "blob": "0x0102",
    },
}


def changed(path, value):
    typed = copy.deepcopy(MAIL)
    place = typed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return typed


def test_nested_structs_and_arrays_have_eth_accounts_digest():
    signable = encode_typed_data(full_message=MAIL)
    expected = keccak(b"\x19" + signable.version + signable.header + signable.body)
    assert foreign_digest(MAIL) == expected
    without = copy.deepcopy(MAIL)
    del without["types"]["EIP712Domain"]
    assert foreign_digest(json.dumps(without)) == expected


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["message", "count"], 1 << 24), (["message", "count"], -1), (["message", "count"], "1_0"),
        (["message", "count"], "\uff10"), (["message", "count"], True), (["message", "count"], 1.0),
        (["message", "count"], None), (["message", "count"], "9" * 5000), (["message", "delta"], 1 << 15),
        (["message", "flag"], 1), (["message", "flag"], "true"), (["message", "contents"], 5),
        (["message", "blob"], "0x1"), (["message", "blob"], "text"), (["message", "grid"], [[256]]),
        (["message", "grid"], [1]), (["message", "to"], {}), (["message", "to"], [{}]),
        (["message", "from"], None), (["message", "from", "extra"], 1), (["message", "extra"], 1),
        (["message", "from", "wallets"], ["0x00"]), (["domain", "chainId"], -1), (["domain", "extra"], "x"),
        (["domain", "salt"], "0x" + "00" * 32), (["domain"], {}), (["domain"], []), (["extra"], 1),
        (["primaryType"], "Nobody"), (["primaryType"], "EIP712Domain"), (["primaryType"], 5),
        (["types"], {}), (["types"], []), (["types", "Person"], {}), (["types", "Person"], [{"name": "name"}]),
        (["types", "Person", 0, "type"], "text"), (["types", "Person", 0, "type"], "uint7"),
        (["types", "Person", 0, "type"], "uint"), (["types", "Person", 0, "type"], "string[2]"),
        (["types", "Person", 0, "type"], 5), (["types", "Person", 0, "type"], "string" + "[]" * 100_000),
        (["types", "Person", 0, "name"], "a b"), (["types", "Person", 0, "name"], "wallets"),
        (["types", "Person", 0, "name"], "x,uint8 y"), (["types", "address"], []), (["types", "A(b"], []),
        (["types", "EIP712Domain", 0, "type"], "bytes"), (["types", "EIP712Domain", 2, "type"], "uint64"),
        (["types", "EIP712Domain"], []),
    ],
)  # fmt: skip
def test_loose_typed_data_is_refused(path, value):
    foreign_digest(MAIL)
    with pytest.raises(Malformed):
        foreign_digest(changed(path, value))


def test_a_domain_is_no_message():
    """What would be signed is the digest of a domain, which says nothing."""
    itself = copy.deepcopy(MAIL)
    itself["primaryType"], itself["message"] = "EIP712Domain", itself["domain"]
    with pytest.raises(Malformed, match="primaryType"):
        foreign_digest(json.dumps(itself))


def test_a_struct_that_holds_itself_ends_in_an_error_and_not_in_a_crash():
    typed = {
        "types": {"Loop": [{"name": "next", "type": "Loop[]"}]},
        "primaryType": "Loop",
        "domain": {"name": "x"},
        "message": {"next": [{"next": []}]},
    }
    assert len(foreign_digest(typed)) == 32
    deep = {"next": []}
    for _ in range(5_000):
        deep = {"next": [deep]}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000)
    try:
        with pytest.raises(Malformed, match="too deeply"):
            foreign_digest(typed | {"message": deep})
    finally:
        sys.setrecursionlimit(limit)


def test_a_types_name_has_a_length_that_is_quick_to_look_at():
    assert read_types({"A": [{"name": "x", "type": "string" + "[]" * 70}]})
    with pytest.raises(Malformed, match="unknown type"):
        read_types({"A": [{"name": "x", "type": "string" + "[]" * 80}]})
