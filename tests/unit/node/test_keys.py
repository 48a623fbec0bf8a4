"""Keys on disk: private from the first byte, never overwritten, and errors that say what to do."""

import json
import os
import stat
import subprocess
import sys

import pytest

from hansa.node import secret_files
from hansa.node.chain import keys, keystore
from hansa.node.faults import ConfigError, OperatorError, WalletLocked
from hansa.proto.signing import CURVE_ORDER, SigningKey


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "hansa"


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_node_key_is_written_privately_and_read_back(home):
    old = os.umask(0)
    try:
        key = keys.create_node_key(home / "node.key")
    finally:
        os.umask(old)
    assert mode_of(home) == 0o700
    assert mode_of(home / "node.key") == 0o600
    assert keys.load_node_key(home / "node.key").address == key.address
    assert [path.name for path in home.iterdir()] == ["node.key"]


def test_two_node_keys_are_different(home):
    assert keys.create_node_key(home / "a").address != keys.create_node_key(home / "b").address


def test_a_key_is_never_overwritten(home):
    key = keys.create_node_key(home / "node.key")
    with pytest.raises(ConfigError) as caught:
        keys.create_node_key(home / "node.key")
    assert "never overwritten" in caught.value.hint
    assert keys.load_node_key(home / "node.key").address == key.address
    assert [path.name for path in home.iterdir()] == ["node.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o601])
def test_a_key_file_open_to_others_is_refused(home, mode):
    keys.create_node_key(home / "node.key")
    (home / "node.key").chmod(mode)
    with pytest.raises(ConfigError, match="open to other users") as caught:
        keys.load_node_key(home / "node.key")
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_directory_open_to_others_is_refused(home, mode):
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(ConfigError, match="open to other users") as caught:
        keys.create_node_key(home / "node.key")
    assert "chmod 700" in caught.value.hint
    assert list(home.iterdir()) == []


def test_links_pipes_and_other_things_are_no_key_file(home):
    keys.create_node_key(home / "node.key")
    (home / "link").symlink_to(home / "node.key")
    (home / "folder").mkdir()
    os.mkfifo(home / "pipe", 0o600)
    for name in ("link", "folder", "pipe", "absent"):
        with pytest.raises(ConfigError) as caught:
            keys.load_node_key(home / name)
        assert caught.value.hint


def test_a_link_is_no_private_directory(home, tmp_path):
    secret_files.ensure_private_directory(home)
    (tmp_path / "link").symlink_to(home)
    with pytest.raises(ConfigError):
        keys.create_node_key(tmp_path / "link" / "node.key")


def test_anothers_file_is_refused(home, monkeypatch):
    keys.create_node_key(home / "node.key")
    someone_else = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: someone_else)
    with pytest.raises(ConfigError, match="another user") as caught:
        keys.load_node_key(home / "node.key")
    assert "run hansa as that user" in caught.value.hint, "root looks at a service's node, and must not take its keys"


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"00" * 32, b"ff" * 32, b"42" * 31, b"42" * 33, b"0x" + b"42" * 32, b"42" * 32 + b"\n\n",
     b"4_" * 32, b"42 " * 21 + b"4", "\uff14".encode() * 64,
     CURVE_ORDER.to_bytes(32, "big").hex().encode(), b"x" * 100_000],
    ids=range(13),
)  # fmt: skip
def test_a_file_that_holds_no_key_is_told_apart_without_showing_it(home, content):
    secret_files.ensure_private_directory(home)
    path = home / "node.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        keys.load_node_key(path)
    if content.strip():
        assert content.decode(errors="replace").strip() not in caught.value.what + caught.value.hint


def test_systemd_hands_in_the_node_key_and_the_password(home, tmp_path, monkeypatch):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "node-key").write_text("42" * 32)
    (credentials / "account-password").write_text("from systemd\n")
    (credentials / "node-key").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert keys.load_node_key(home / "absent").address == SigningKey(b"\x42" * 32).address
    assert keys.read_password(None) == "from systemd"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError):
        keys.load_node_key(home / "absent")


def test_an_account_made_unattended_opens_quickly_with_its_password_file(home):
    key = keystore.create_account_unattended(home / "account.json", home / "account.password")
    assert mode_of(home / "account.json") == mode_of(home / "account.password") == 0o600
    password = keys.read_password(home / "account.password")
    assert len(bytes.fromhex(password)) == 32
    assert password not in (home / "account.json").read_text()
    assert key.secret().hex() not in (home / "account.json").read_text()
    assert keystore.load_account(home / "account.json", password).address == key.address
    assert keystore.account_address(home / "account.json") == key.address


def test_a_wrong_password_and_a_damaged_keystore_say_so(home):
    keystore.create_account_unattended(home / "account.json", home / "account.password")
    password = keys.read_password(home / "account.password")
    with pytest.raises(WalletLocked) as caught:
        keystore.load_account(home / "account.json", "wrong")
    assert caught.value.hint
    table = json.loads((home / "account.json").read_text())
    for broken in (
        table | {"crypto": {}},
        table | {"crypto": None},
        table | {"version": 4},
        table | {"address": "00" * 20},
        table | {"crypto": table["crypto"] | {"mac": "00" * 32}},
        table | {"crypto": table["crypto"] | {"kdf": "none"}},
        table | {"crypto": table["crypto"] | {"ciphertext": "zz"}},
        [],
    ):
        (home / "account.json").write_text(json.dumps(broken))
        with pytest.raises(OperatorError) as caught:
            keystore.load_account(home / "account.json", password)
        assert password not in caught.value.what + caught.value.hint
    (home / "account.json").write_text("[" * 500_000)
    with pytest.raises(ConfigError):
        keystore.load_account(home / "account.json", password)


def test_an_imported_account_uses_scrypt_and_its_password_can_change(home):
    secret = b"\x42" * 32
    key = keystore.create_account(home / "account.json", "correct horse", secret=secret)
    assert key.address == SigningKey(secret).address
    crypto = json.loads((home / "account.json").read_text())["crypto"]
    assert (crypto["kdf"], crypto["kdfparams"]["n"]) == ("scrypt", 262144)
    with pytest.raises(ConfigError):
        keystore.create_account(home / "account.json", "correct horse", secret=secret)
    keystore.change_password(home / "account.json", "correct horse", "battery staple")
    assert keystore.load_account(home / "account.json", "battery staple").address == key.address
    assert mode_of(home / "account.json") == 0o600
    assert [path.name for path in home.iterdir()] == ["account.json"]


def test_no_password_empty_password_and_open_password_file_are_told_apart(home):
    with pytest.raises(WalletLocked, match="no password was given"):
        keys.read_password(None)
    secret_files.ensure_private_directory(home)
    path = home / "password"
    path.touch(0o600)
    for content in (b"", b"\n", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(WalletLocked, match=r".*/password holds no password"):
            keys.read_password(path)
    path.write_bytes("pässword with spaces \n".encode())
    assert keys.read_password(path) == "pässword with spaces "
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="open to other users"):
        keys.read_password(path)


def test_the_wallet_library_comes_late_and_leaves_the_recursion_limit_alone(home):
    program = (
        "import sys; from pathlib import Path; from hansa.node.chain import keystore\n"
        "assert not [name for name in sys.modules if name.startswith('eth')]\n"
        "limit = sys.getrecursionlimit()\n"
        f"keystore.create_account_unattended(Path({str(home)!r}) / 'a', Path({str(home)!r}) / 'b')\n"
        "assert 'py_ecc' in sys.modules\n"
        "assert sys.getrecursionlimit() == limit\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
