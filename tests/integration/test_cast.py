"""Foundry's ``cast`` and ``hansa wallet`` open each other's keystores and sign the same bytes."""

import json
import subprocess
import sys

import pytest
from kit import trading
from kit.foundry import find_cast

from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import MeterLine, Voucher
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey, checksum_address
from hansa.proto.splits import Split
from hansa.proto.typed_data import digest
from hansa.proto.typed_payload import typed_payload

pytestmark = pytest.mark.slow
KEY = SigningKey(bytes.fromhex("5ca1ab1e" * 8))
PASSWORD = "no trouble at all"
ON_CHAIN = currency_of(escrow_currency(8453, b"\5" * 20, b"\6" * 20)).domain
METERED = MeterLine(
    lease=b"l" * 32, shard=3, device=b"d" * 32, start_ms=1, end_ms=(1 << 64) - 1, device_ms=1 << 100, amount=0
)


@pytest.fixture(scope="module")
def cast():
    program, why = find_cast()
    if program is None:
        pytest.skip(why)

    def run(*arguments):
        command = [str(program), "wallet", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.strip()

    return run


@pytest.fixture
def password_file(tmp_path):
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text(PASSWORD)
    return file


def hansa(home, *arguments, stdin=""):
    command = [sys.executable, "-m", "hansa", "wallet", *map(str, arguments), "--data", str(home)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_cast_opens_our_keystores_and_we_open_its_own(cast, tmp_path, password_file):
    home, theirs = tmp_path / "hansa", tmp_path / "keystores"
    made = json.loads(hansa(home, "import", "--password-file", password_file, "--json", stdin=KEY.secret().hex()))
    opened = cast("address", "--keystore", made["keystore"], "--password-file", password_file)
    assert opened == made["address"] == checksum_address(KEY.address)
    copy = tmp_path / "out" / "copy.json"
    hansa(home, "export", "--to", copy, "--password-file", password_file, "--new-password-file", password_file)
    assert KEY.secret().hex() in cast("decrypt-keystore", copy.name, "-k", copy.parent, "--unsafe-password", PASSWORD)
    other = "7a" * 32
    cast("import", "k1", "--keystore-dir", theirs, "--private-key", "0x" + other, "--unsafe-password", PASSWORD)
    back = ("--account", "back", "--keystore", theirs / "k1", "--password-file", password_file)
    taken = json.loads(hansa(home, "import", *back, "--new-password-file", password_file, "--json"))
    assert taken["address"] == checksum_address(SigningKey(bytes.fromhex(other)).address)


def test_cast_signs_byte_identical_texts_and_typed_data(cast, tmp_path, password_file):
    home = tmp_path / "hansa"
    keystore = json.loads(hansa(home, "import", "--password-file", password_file, "--json", stdin=KEY.secret().hex()))[
        "keystore"
    ]
    opens = ("--keystore", keystore, "--password-file", password_file)
    for text in ("hello", "zwei\nZeilen", "\u65e5\u672c\u8a9e"):
        assert hansa(home, "sign", text, "--password-file", password_file) == cast("sign", text, *opens)
    splits = (Split(account=b"\1" * 20, bps=250), Split(account=b"\2" * 20, bps=1))
    examples = (
        (ON_CHAIN, Voucher(channel_id=b"\7" * 32, cumulative=(1 << 128) - 1, statement=b"\0" * 32)),
        (ON_CHAIN, trading.channel()),
        (DOMAIN, trading.tender(splits=splits)),
        (DOMAIN, trading.bid(trading.tender()).document),
        (DOMAIN, METERED),
    )
    for number, (domain, document) in enumerate(examples):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(typed_payload(domain, document)))
        theirs = cast("sign", "--data", "--from-file", file, *opens)
        assert "0x" + KEY.sign_digest(digest(domain, document)).hex() == theirs, type(document).__name__
        if number == 0:
            assert hansa(home, "sign", "--typed", file, "--password-file", password_file) == theirs
