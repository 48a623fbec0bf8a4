"""Signing with a key that is somewhere else: a real signer's answers are taken, and a lying one's are not."""

import json
import socket
import threading
from contextlib import contextmanager

import pytest
import trio
from click.testing import CliRunner
from kit.anvil import RICH, local_chain
from kit.rpc_stand_in import error, result, rpc_stand_in
from kit.trading import tender

from hansa.node.chain.external_signer import ExternalSigner
from hansa.node.chain.wallet import text_to_sign, typed_to_sign
from hansa.node.commands.cli import cli
from hansa.node.faults import ConfigError, OperatorError
from hansa.proto.network import DOMAIN
from hansa.proto.signing import CURVE_ORDER, SigningKey, checksum_address
from hansa.proto.typed_data import digest
from hansa.proto.typed_payload import typed_payload

KEY = SigningKey(b"\x42" * 32)
OTHER = SigningKey(b"\x43" * 32)
TENDER = tender()
TYPED = json.dumps(typed_payload(DOMAIN, TENDER)).encode()


def signed(url, to_sign, *, account=KEY.address, patience_s=10.0):
    async def ask():
        signer = ExternalSigner(url, account, patience_s=patience_s)
        try:
            return await signer.sign(to_sign)
        finally:
            await signer.close()

    return trio.run(ask)


def answering(signature):
    """A signer that gives the same answer to whatever it is shown."""
    return rpc_stand_in(lambda _method, _params, number: result(signature, number))


def run(*arguments):
    return CliRunner().invoke(cli, ["wallet", *[str(argument) for argument in arguments]])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["http", "unix"])
def test_a_real_signer_signs_documents_and_texts(way, tmp_path):
    ipc = tmp_path / "signer.ipc"
    with local_chain("--ipc", str(ipc)) as chain:
        url = chain.url if way == "http" else f"unix:{ipc}"
        file = tmp_path / "tender.json"
        file.write_bytes(TYPED)
        who = checksum_address(RICH.address)
        shown = run("list", "--signer", url).stdout.split()
        assert who in shown
        assert len(shown) == 10
        for what, expected in (
            (("--typed", file), digest(DOMAIN, TENDER)),
            (("hello \u65e5",), text_to_sign("hello \u65e5").digest),
        ):
            done = run("sign", *what, "--signer", url, "--address", who, "--json")
            assert done.exit_code == 0, done.stderr
            assert json.loads(done.stdout)["signature"] == "0x" + RICH.sign_digest(expected).hex()
        several = run("sign", "x", "--signer", url)
        assert several.exit_code == 2
        assert "--address" in several.stderr


@pytest.mark.parametrize("v", [0, 1, 27, 28])
def test_either_spelling_of_v_is_taken_and_one_is_given_back(v):
    to_sign = text_to_sign("hello")
    good = KEY.sign_digest(to_sign.digest)
    spelled = good[:64] + bytes((v,))
    with answering("0x" + spelled.hex()) as signer:
        if v in (good[64], good[64] - 27):
            assert signed(signer.url, to_sign) == good
        else:
            with pytest.raises(OperatorError):
                signed(signer.url, to_sign)


def lies():
    to_sign = typed_to_sign(TYPED, "x")
    good = KEY.sign_digest(to_sign.digest)
    high_s = (CURVE_ORDER - int.from_bytes(good[32:64], "big")).to_bytes(32, "big")
    yield "another key", OTHER.sign_digest(to_sign.digest)
    yield "another document", KEY.sign_digest(text_to_sign("I owe you everything").digest)
    yield "the high twin", good[:32] + high_s + bytes((55 - good[64],))
    yield "v of 36", good[:64] + bytes((36,))
    yield "zeros", bytes(65)
    yield "short", good[:64]
    yield "long", good + b"\0"


@pytest.mark.parametrize("answer", [answer for _, answer in lies()], ids=[name for name, _ in lies()])
def test_what_is_not_the_accounts_signature_over_this_is_not_taken(answer):
    with answering("0x" + answer.hex()) as signer, pytest.raises(OperatorError) as caught:
        signed(signer.url, typed_to_sign(TYPED, "x"))
    assert caught.value.hint


@pytest.mark.parametrize("answer", [None, 7, "", "0x", "0xzz", ["0x"], {"r": "0x"}])
def test_nonsense_is_no_signature(answer):
    with answering(answer) as signer, pytest.raises(OperatorError, match="signer"):
        signed(signer.url, text_to_sign("x"))


def test_a_refusal_is_said_in_the_signers_plain_words():
    words = "denied by \x1b[31mthe user"
    refusing = rpc_stand_in(lambda _method, _params, number: error(4001, words, number))
    with refusing as signer, pytest.raises(OperatorError, match="denied by") as caught:
        signed(signer.url, text_to_sign("x"))
    assert "\x1b" not in caught.value.what


def test_a_signer_that_is_away_or_silent_is_said(tmp_path):
    with pytest.raises(OperatorError, match="cannot be reached"):
        signed(f"unix:{tmp_path}/nobody.ipc", text_to_sign("x"))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.ipc"))
        silent.listen()
        with pytest.raises(OperatorError, match="did not answer"):
            signed(f"unix:{tmp_path}/silent.ipc", text_to_sign("x"), patience_s=0.5)


@contextmanager
def on_a_socket(path, pieces):
    """A signer that answers one question on a unix socket, piece by piece."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve():
            stream, _ = listening.accept()
            with stream:
                stream.recv(1 << 20)
                try:
                    for piece in pieces:
                        stream.sendall(piece)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"unix:{path}"
        thread.join(20)


def test_an_answer_may_come_in_pieces_and_must_end(tmp_path):
    to_sign = text_to_sign("hello")
    good = KEY.sign_digest(to_sign.digest)
    whole = json.dumps({"jsonrpc": "2.0", "id": 1, "x": {}, "result": "0x" + good.hex()}).encode()
    with on_a_socket(tmp_path / "pieces", [whole[index : index + 7] for index in range(0, len(whole), 7)]) as url:
        assert signed(url, to_sign) == good
    with on_a_socket(tmp_path / "cut", [whole[:-9]]) as url, pytest.raises(OperatorError):
        signed(url, to_sign)
    with on_a_socket(tmp_path / "endless", [b"[" * 65_536] * 40) as url, pytest.raises(OperatorError):
        signed(url, to_sign)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8550", "file:///etc/passwd", "ftp://x"])
def test_what_is_no_address_of_a_signer_is_said(url):
    with pytest.raises(ConfigError):
        ExternalSigner(url, None)
    done = run("sign", "x", f"--signer={url}")
    assert done.exit_code == 2
    assert "hint:" in done.stderr


def test_a_key_here_and_a_signer_outside_are_not_mixed_up():
    for arguments in (("--signer", "http://x", "--account", "main"), ("--address", checksum_address(KEY.address))):
        done = run("sign", "x", *arguments)
        assert done.exit_code == 2, done.output
