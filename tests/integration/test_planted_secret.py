"""Secrets in logs, argv, crash dumps: a planted key and password are looked for wherever a process could leave them."""

import base64
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account

from hansa.proto.signing import SigningKey, checksum_address

SECRET = bytes.fromhex("c0ffee11" * 8)
PASSWORD = "planted-Passw0rd-of-the-account"
FORMS = (
    SECRET,
    SECRET.hex().encode(),
    SECRET.hex().upper().encode(),
    base64.b64encode(SECRET)[:40],
    str(int.from_bytes(SECRET, "big")).encode(),
    repr(SECRET)[2:-1].encode(),
)
PASSWORD_FORMS = (PASSWORD.encode(), base64.b64encode(PASSWORD.encode())[:40])


def leaks(content: bytes, forms=(*FORMS, *PASSWORD_FORMS)) -> list[bytes]:
    return [form for form in forms if form in content]


def hansa(*arguments) -> list[str]:
    return [sys.executable, "-m", "hansa", *map(str, arguments)]


@pytest.fixture
def data(tmp_path):
    """A node whose account is the planted one."""
    directory = tmp_path / "node"
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0", "--metrics-port", "0")
    subprocess.run(hansa("init", "--data", directory, *listen), check=True, capture_output=True, timeout=60)
    table = Account.encrypt(SECRET, PASSWORD, kdf="pbkdf2", iterations=10)
    (directory / "account.json").write_text(json.dumps(table))
    (directory / "account.password").write_text(PASSWORD)
    return directory


def processes_below(pid: int) -> list[int]:
    below = [pid]
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if entry.name.isdigit() else 0
        except OSError:
            continue
        if parent == pid:
            below += processes_below(int(entry.name))
    return below


def test_secrets_in_logs_argv_crash_dumps_of_a_daemon(data):
    process = subprocess.Popen(
        hansa("node", "run", "--data", data, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        ready = json.loads(process.stdout.readline())
        assert ready["account"] == checksum_address(SigningKey(SECRET).address)
        asked = subprocess.run(hansa("balance", "--data", data, "--json"), check=True, capture_output=True, timeout=60)
        for pid in processes_below(process.pid):
            assert not leaks(Path(f"/proc/{pid}/cmdline").read_bytes())
        limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
        (cores,) = [line.split() for line in limits if line.startswith("Max core file size")]
        assert cores[4:6] == ["0", "0"]
        # Of a process that may not be dumped, what shows its memory belongs to root, whoever runs it.
        if os.geteuid() != 0:
            assert Path(f"/proc/{process.pid}/mem").stat().st_uid == 0
    finally:
        process.send_signal(signal.SIGTERM)
        said, log = process.communicate(timeout=30)
    assert not leaks(json.dumps(ready).encode() + said.encode() + log.encode() + asked.stdout + asked.stderr)
    for path in data.rglob("*"):
        if path.is_file() and path.name != "account.password":
            assert not leaks(path.read_bytes()), path


def test_secrets_in_logs_argv_crash_dumps_of_a_wallet(data, tmp_path):
    home = tmp_path / "home"
    password = tmp_path / "password"
    password.touch(0o600)
    password.write_text(PASSWORD)
    command = hansa("wallet", "import", "--password-file", password, "--data", home)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    argv = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    said, errors = process.communicate(SECRET.hex().encode(), timeout=60)
    assert process.returncode == 0
    outputs = [argv + said + errors]
    commands = (("list",), ("sign", "x"), ("address",), ("sign", "--typed", "/nowhere"), ("export", "--to", home))
    for arguments in commands:
        opens = () if arguments[0] == "list" else ("--password-file", password)
        done = subprocess.run(
            hansa("wallet", *arguments, *opens, "--data", home, "--json"), capture_output=True, timeout=60, check=False
        )
        outputs.append(done.stdout + done.stderr)
    assert not leaks(b"".join(outputs))
    for path in home.rglob("*"):
        assert not path.is_file() or not leaks(path.read_bytes()), path


CRASH = """
import os, sys
from hansa.node.chain.keystore import load_account
from hansa.node.chain.secrecy import keep_memory_private
from pathlib import Path
keep_memory_private()
key = load_account(Path(sys.argv[1]), Path(sys.argv[2]).read_text())
if sys.argv[3] == "abort":
    os.abort()
key.sign_digest(key)
"""


@pytest.mark.parametrize("how", ["abort", "traceback"])
def test_a_crash_with_an_open_key_leaves_no_dump_and_shows_no_secret(data, tmp_path, how):
    where = tmp_path / "crash"
    where.mkdir()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", CRASH, str(data / "account.json"), str(data / "account.password"), how],
        cwd=where,
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2),
    )
    assert done.returncode != 0
    assert done.returncode == (-signal.SIGABRT if how == "abort" else 1)
    assert not leaks(done.stdout + done.stderr)
    assert list(where.iterdir()) == []


def test_a_process_with_private_memory_may_not_be_dumped():
    program = (
        "import ctypes, resource\nfrom hansa.node.chain.secrecy import keep_memory_private\nkeep_memory_private()\n"
        "assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0, 'PR_GET_DUMPABLE'\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_no_repr_of_anything_that_holds_a_key_shows_it(data):
    from hansa.node.chain.wallet import Wallet, open_account

    account = Wallet(data).find(None)
    key = open_account(account, PASSWORD)
    for held in (key, account, [key], {"key": key}):
        assert not leaks(f"{held!r} {held!s}".encode())
