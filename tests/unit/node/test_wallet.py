"""``hansa wallet`` as a person types it: keystores, prompts, signatures, and nothing secret where it should not be."""

import ctypes
import json
import os
import pty
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from eth_account import Account
from eth_account.messages import encode_defunct, encode_typed_data

from hansa.node.chain import wallet
from hansa.node.commands.cli import cli
from hansa.node.faults import ConfigError, WalletLocked
from hansa.proto.signing import SigningKey, checksum_address

SECRET = bytes.fromhex("6d" * 31 + "42")
KEY = SigningKey(SECRET)
PASSWORD = "correct horse battery staple"
TYPED = {
    "types": {
        "EIP712Domain": [{"name": "name", "type": "string"}, {"name": "chainId", "type": "uint256"}],
        "Transfer": [{"name": "to", "type": "address"}, {"name": "amount", "type": "uint256"}],
    },
    "primaryType": "Transfer",
    "domain": {"name": "Bank", "chainId": 31337},
    "message": {"to": "0x" + "11" * 20, "amount": "340282366920938463463374607431768211455"},
}
PR_SET_DUMPABLE = 4


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    yield
    # The commands ran inside this process, which other tests want to look into.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "hansa"


@pytest.fixture
def password_file(tmp_path):
    return private_file(tmp_path / "password", PASSWORD + "\n")


@pytest.fixture
def typed_file(tmp_path):
    file = tmp_path / "typed.json"
    file.write_text(json.dumps(TYPED))
    return file


def private_file(path, text):
    path.touch(0o600)
    path.write_text(text)
    return path


def run(home, *arguments, stdin=None) -> Result:
    given = [str(argument) for argument in arguments]
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(cli, ["wallet", *given, "--data", str(home)], input=stdin)


def holds(home, password_file, *, name="main"):
    """Have the known key in the wallet, without the second that scrypt takes."""
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "wallets").mkdir(mode=0o700, exist_ok=True)
    keystore = Account.encrypt(SECRET, password_file.read_text().strip(), kdf="pbkdf2", iterations=10)
    return private_file(home / "wallets" / f"{name}.json", json.dumps(keystore))


def is_one_line_with_a_hint(result: Result) -> bool:
    lines = result.stderr.splitlines()
    shape = [line.partition(":")[0] for line in lines]
    return result.exit_code == 2 and result.stdout == "" and shape == ["hansa", "hint"]


def test_a_new_account_is_private_and_opens_with_its_password(home, password_file):
    made = json.loads(run(home, "new", "--password-file", password_file, "--json").stdout)
    path = Path(made["keystore"])
    assert path == home / "wallets" / "main.json"
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, home)] == [0o600, 0o700, 0o700]
    crypto = json.loads(path.read_text())["crypto"]
    assert (crypto["kdf"], crypto["kdfparams"]["n"]) == ("scrypt", 262144)
    assert Account.from_key(Account.decrypt(path.read_text(), PASSWORD)).address == made["address"]


def test_an_account_is_never_overwritten(home, password_file):
    before = holds(home, password_file).read_bytes()
    assert is_one_line_with_a_hint(run(home, "new", "--password-file", password_file))
    assert is_one_line_with_a_hint(run(home, "import", "--password-file", password_file, stdin="42" * 32))
    assert (home / "wallets" / "main.json").read_bytes() == before


@pytest.mark.parametrize("name", ["node", "", "../escape", "a/b", "A", ".hidden", "-x", "x" * 64, "ké"])
def test_what_is_no_name_for_an_account_is_refused(home, password_file, name):
    result = run(home, "new", f"--account={name}", "--password-file", password_file)
    assert is_one_line_with_a_hint(result)


def test_a_key_comes_from_standard_input_and_is_the_one_that_was_meant(home, password_file):
    result = run(home, "import", "--password-file", password_file, "--json", stdin="0x" + SECRET.hex() + "\n")
    assert json.loads(result.stdout)["address"] == checksum_address(KEY.address)


@pytest.mark.parametrize("text", ["", "42" * 31, "zz" * 32, "00" * 32, "ff" * 32, "42" * 32 + " 42", "4_" * 32])
def test_what_is_no_key_is_refused_without_being_shown(home, password_file, text):
    result = run(home, "import", "--password-file", password_file, stdin=text)
    assert is_one_line_with_a_hint(result)
    assert not text or text not in result.output
    assert not (home / "wallets" / "main.json").exists()


def test_another_programs_keystore_is_taken_in_under_a_password_of_its_own(home, tmp_path, password_file):
    foreign = tmp_path / "UTC--2026--key"
    table = Account.encrypt(SECRET, "theirs", kdf="pbkdf2", iterations=10)
    del table["address"]  # Foundry's files do not say it
    foreign.write_text(json.dumps(table))
    foreign.chmod(0o644)
    theirs = private_file(tmp_path / "theirs", "theirs")
    options = ("--keystore", foreign, "--password-file", theirs, "--new-password-file", password_file)
    assert json.loads(run(home, "import", *options, "--json").stdout)["address"] == checksum_address(KEY.address)
    assert Account.decrypt((home / "wallets" / "main.json").read_text(), PASSWORD) == SECRET


def test_a_key_on_the_command_line_is_refused_and_said_to_be_spent(home):
    result = run(home, "import", "0x" + SECRET.hex())
    assert is_one_line_with_a_hint(result)
    assert "history" in result.stderr
    assert SECRET.hex() not in result.output


def test_accounts_are_listed_by_name_with_the_nodes_own_first(home, password_file):
    assert "hansa wallet new" in run(home, "list").stdout
    holds(home, password_file, name="cold")
    nameless = json.loads((home / "wallets" / "cold.json").read_text())
    del nameless["address"]
    private_file(home / "wallets" / "a.json", json.dumps(nameless))
    own = private_file(home / "account.json", (home / "wallets" / "cold.json").read_text())
    listed = json.loads(run(home, "list", "--json").stdout)["accounts"]
    assert [entry["name"] for entry in listed] == ["node", "a", "cold"]
    assert [entry["address"] for entry in listed] == [
        checksum_address(KEY.address),
        None,
        checksum_address(KEY.address),
    ]
    assert listed[0]["keystore"] == str(own)
    assert checksum_address(KEY.address) in run(home, "list").stdout


def test_an_account_is_meant_by_name_address_or_path(home, password_file):
    path = holds(home, password_file, name="cold")
    address = checksum_address(KEY.address)
    for meant in (
        (),
        ("--account", "cold"),
        ("--account", address),
        ("--account", address.lower()),
        ("--account", path),
    ):
        assert run(home, "address", *meant).stdout.strip() == address
    holds(home, password_file, name="warm")
    assert is_one_line_with_a_hint(run(home, "address"))
    assert is_one_line_with_a_hint(run(home, "address", "--account", "0x" + "11" * 20))


def test_a_file_that_does_not_say_its_address_is_opened_for_it(home, password_file):
    path = holds(home, password_file)
    table = json.loads(path.read_text())
    del table["address"]
    path.write_text(json.dumps(table))
    shown = run(home, "address", "--password-file", password_file)
    assert shown.stdout.strip() == checksum_address(KEY.address)


@pytest.mark.parametrize("text", ["", "hello", "zwei\nZeilen", "\u65e5\u672c\u8a9e \U0001f600", "0x1234", "x" * 5_000])
def test_texts_are_signed_as_other_wallets_sign_them(home, password_file, text):
    holds(home, password_file)
    signed = run(home, "sign", text, "--password-file", password_file, "--json")
    signature = json.loads(signed.stdout)["signature"]
    assert signature == "0x" + Account.sign_message(encode_defunct(text=text), SECRET).signature.hex()
    verified = run(home, "verify", text, "--signature", signature, "--address", checksum_address(KEY.address))
    assert verified.exit_code == 0
    other = run(home, "verify", text + "!", "--signature", signature, "--account", "main")
    assert other.exit_code == 1
    assert "NOT" in other.stdout


def test_typed_data_is_signed_as_other_wallets_sign_it(home, password_file, typed_file):
    holds(home, password_file)
    signed = run(home, "sign", "--typed", typed_file, "--password-file", password_file)
    theirs = Account.sign_message(encode_typed_data(full_message=TYPED), SECRET).signature.hex()
    assert signed.stdout.strip() == "0x" + theirs
    assert "Transfer for name" in signed.stderr
    verified = run(home, "verify", "--typed", typed_file, "--signature", "0x" + theirs, "--json")
    assert json.loads(verified.stdout) == {"signer": checksum_address(KEY.address), "as_expected": None}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        json.dumps(TYPED | {"more": 1}),
        json.dumps(TYPED | {"message": {"to": "0x" + "11" * 20, "amount": 1.5}}),
        json.dumps(TYPED | {"message": {"to": "0x" + "11" * 20, "amount": "1_000"}}),
        json.dumps(TYPED).replace('"primaryType"', '"primaryType": "Transfer", "primaryType"'),
        "[" * 100_00,
    ],
    ids=["empty", "object", "more", "float", "underscore", "twice", "deep"],
)
def test_what_is_no_exact_typed_data_is_not_signed(home, password_file, tmp_path, text):
    holds(home, password_file)
    file = tmp_path / "bad.json"
    file.write_text(text)
    assert is_one_line_with_a_hint(run(home, "sign", "--typed", file, "--password-file", password_file))


def test_a_signature_in_another_form_than_the_contracts_is_refused():
    to_sign = wallet.text_to_sign("hello")
    signature = KEY.sign_digest(to_sign.digest)
    order = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
    twin = signature[:32] + (order - int.from_bytes(signature[32:64])).to_bytes(32) + bytes((55 - signature[64],))
    zero_based = signature[:64] + bytes((signature[64] - 27,))
    for other in (twin, zero_based, signature[:-1], signature + b"\0"):
        with pytest.raises(ConfigError):
            wallet.signer_of_text(to_sign, "0x" + other.hex())
    assert wallet.signer_of_text(to_sign, "0x" + signature.hex()) == KEY.address


def test_a_password_changes_and_the_old_one_opens_nothing(home, tmp_path, password_file):
    path = holds(home, password_file)
    newer = private_file(tmp_path / "newer", "something else")
    changed = run(home, "change-password", "--password-file", password_file, "--new-password-file", newer)
    assert changed.exit_code == 0, changed.stderr
    assert is_one_line_with_a_hint(run(home, "sign", "x", "--password-file", password_file))
    assert Account.decrypt(path.read_text(), "something else") == SECRET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_export_goes_where_others_may_look_and_not_where_they_may_write(home, tmp_path, password_file):
    holds(home, password_file)
    options = ("--password-file", password_file, "--new-password-file", password_file)
    for mode, raw in ((0o755, ()), (0o711, ("--raw-key",)), (0o1777, ())):
        into = tmp_path / f"in-{mode:o}"
        into.mkdir()
        into.chmod(mode)
        done = run(home, "export", "--to", into / "copy.json", *raw, *options)
        assert done.exit_code == 0, done.output
        assert stat.S_IMODE((into / "copy.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(into.stat().st_mode) == mode, "the directory is its owner's affair"
    into = tmp_path / "open"
    into.mkdir()
    into.chmod(0o777)
    refused = run(home, "export", "--to", into / "copy.json", *options)
    assert is_one_line_with_a_hint(refused)
    assert "may write" in refused.stderr
    assert not list(into.iterdir())


def test_the_list_shows_each_address_whole_on_a_narrow_terminal(tmp_path, password_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    home = Path("a-home-of-33-characters-or-so")
    holds(home, password_file, name="m")
    assert checksum_address(KEY.address) in run(home, "list").stdout


def test_an_export_is_a_keystore_under_another_password(home, tmp_path, password_file):
    holds(home, password_file)
    to = tmp_path / "out" / "copy.json"
    newer = private_file(tmp_path / "newer", "for the copy")
    options = ("--password-file", password_file, "--new-password-file", newer)
    assert run(home, "export", "--to", to, *options).exit_code == 0
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    assert Account.decrypt(to.read_text(), "for the copy") == SECRET
    assert is_one_line_with_a_hint(run(home, "export", "--to", to, *options))


def test_a_bare_key_leaves_only_when_it_is_said_and_never_into_a_pipe(home, tmp_path, password_file):
    holds(home, password_file)
    piped = run(home, "export", "--raw-key", "--password-file", password_file)
    assert is_one_line_with_a_hint(piped)
    assert is_one_line_with_a_hint(run(home, "export", "--password-file", password_file))
    to = tmp_path / "out" / "key"
    written = run(home, "export", "--raw-key", "--to", to, "--password-file", password_file)
    assert to.read_text() == "0x" + SECRET.hex() + "\n"
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    assert "owns the account" in written.stderr
    assert SECRET.hex() not in piped.output + written.output


def test_a_password_file_that_others_may_read_is_refused(home, password_file):
    holds(home, password_file)
    password_file.chmod(0o640)
    result = run(home, "sign", "x", "--password-file", password_file)
    assert is_one_line_with_a_hint(result)
    assert "chmod 600" in result.stderr


def test_the_nodes_own_opens_with_the_file_beside_it_or_with_systemds_credential(home, tmp_path, monkeypatch):
    home.mkdir(mode=0o700)
    table = Account.encrypt(SECRET, PASSWORD, kdf="pbkdf2", iterations=10)
    private_file(home / "account.json", json.dumps(table))
    account = wallet.Wallet(home).find(None)
    assert wallet.known_password(account, None) is None
    private_file(home / "account.password", PASSWORD)
    account = wallet.Wallet(home).find(None)
    assert wallet.known_password(account, None) == PASSWORD
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "account-password").write_text("from systemd")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert wallet.known_password(account, None) == "from systemd"


def test_a_wrong_password_says_so_and_shows_nothing(home, password_file, tmp_path):
    holds(home, password_file)
    wrong = private_file(tmp_path / "wrong", "hunter2 hunter2")
    result = run(home, "sign", "x", "--password-file", wrong)
    assert is_one_line_with_a_hint(result)
    assert "hunter2" not in result.output
    with pytest.raises(WalletLocked):
        wallet.open_account(wallet.Wallet(home).find(None), "hunter2 hunter2")


def on_a_terminal(home, arguments, answers):
    """Run a command with a terminal of its own, answer its prompts, and give back what stood on the screen."""
    pid, screen = pty.fork()
    if pid == 0:
        os.environ["COLUMNS"] = "200"
        os.execv(sys.executable, [sys.executable, "-m", "hansa", "wallet", *arguments, "--data", str(home)])
    shown, waiting, deadline = b"", list(answers), time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            piece = os.read(screen, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
        if waiting and shown.endswith(waiting[0][0].encode()):
            os.write(screen, waiting.pop(0)[1].encode() + b"\n")
    os.close(screen)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_on_a_terminal_passwords_and_keys_are_asked_for_and_not_shown(home, tmp_path):
    typed = [("digits): ", SECRET.hex()), ("New password: ", PASSWORD), ("again: ", PASSWORD)]
    code, shown = on_a_terminal(home, ["import", "--account", "typed"], typed)
    assert code == 0, shown
    assert checksum_address(KEY.address) in shown
    assert SECRET.hex() not in shown
    assert PASSWORD not in shown
    code, shown = on_a_terminal(home, ["export", "--raw-key"], [("Password of typed: ", PASSWORD)])
    assert code == 0, shown
    assert "0x" + SECRET.hex() in shown
    assert "owns the account" in shown


def test_two_different_new_passwords_make_nothing(home):
    code, shown = on_a_terminal(home, ["new"], [("New password: ", PASSWORD), ("again: ", PASSWORD + "!")])
    assert code == 2
    assert "differ" in shown
    assert not (home / "wallets" / "main.json").exists()


def test_without_a_terminal_nothing_is_asked(home, password_file):
    holds(home, password_file)
    command = [sys.executable, "-m", "hansa", "wallet", "sign", "x", "--data", str(home)]
    done = subprocess.run(
        command, input=PASSWORD, capture_output=True, text=True, timeout=60, start_new_session=True, check=False
    )
    assert done.returncode == 2
    assert "no terminal" in done.stderr
    assert done.stdout == ""
