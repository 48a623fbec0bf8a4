"""Certificates of one form only, and handshakes that pass with the very certificate and with no other."""

import datetime as dt
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hansa.node.storage.pinned_tls import (
    certificate_in,
    check_certificate,
    dialling_context,
    make_pem,
    pin_of,
    serving_context,
)
from hansa.proto.errors import Malformed


def called(name: str):
    return lambda _key: name


class Machine:
    def __init__(self, folder, number: int, name: str = "hansa test") -> None:
        pem = make_pem(bytes([number]) * 32, called(name))
        self.file = folder / f"{number}.pem"
        self.file.write_bytes(pem)
        self.certificate = certificate_in(pem)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, session=None):
    """Both ends, by way of memory; raises what either raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, session=session),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    ends[1].write(b"x")
    assert ends[0].read(1) == b"x"
    return ends


def test_both_sides_prove_the_certificate_that_the_other_pinned(tmp_path):
    one, other = Machine(tmp_path, 1), Machine(tmp_path, 2)
    client, server = shake_hands(
        serving_context(one.file, [other.certificate]), dialling_context(other.file, [one.certificate])
    )
    assert client.version() == server.version() == "TLSv1.3"
    assert pin_of(server.getpeercert(binary_form=True)) == pin_of(other.certificate)
    assert pin_of(client.getpeercert(binary_form=True)) == pin_of(one.certificate)


def test_a_certificate_that_is_not_pinned_is_refused_by_either_side(tmp_path):
    one, other, stranger = (Machine(tmp_path, number) for number in (1, 2, 3))
    with pytest.raises(ssl.SSLError):
        shake_hands(serving_context(one.file, [other.certificate]), dialling_context(stranger.file, [one.certificate]))
    with pytest.raises(ssl.SSLError):
        shake_hands(
            serving_context(stranger.file, [other.certificate]), dialling_context(other.file, [one.certificate])
        )


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_nothing_older_than_the_newest_tls_is_spoken(tmp_path, side):
    one, other = Machine(tmp_path, 1), Machine(tmp_path, 2)
    server = serving_context(one.file, [other.certificate])
    client = dialling_context(other.file, [one.certificate])
    old = {"server": server, "client": client}[side]
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(server, client)


def test_no_session_is_ever_resumed(tmp_path):
    one, other = Machine(tmp_path, 1), Machine(tmp_path, 2)
    server, client = serving_context(one.file, [other.certificate]), dialling_context(other.file, [one.certificate])
    first, _ = shake_hands(server, client)
    assert first.session is None or not first.session.has_ticket
    if first.session is not None:
        again, _ = shake_hands(server, client, first.session)
        assert not again.session_reused


def test_only_certificates_as_machines_make_them_are_taken(tmp_path):
    ours = Machine(tmp_path, 1).certificate
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hansa test")])
    now = dt.datetime.now(dt.UTC)
    other = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    assert check_certificate(ours, called("hansa test")) == ours
    for data in (
        b"",
        b"0",
        ours[:-1],
        ours[:-1] + b"\0",
        ours + b"\0",
        ours + bytes(2000),
        other.sign(key, SHA256()).public_bytes(Encoding.DER),
    ):
        with pytest.raises(Malformed):
            check_certificate(data, called("hansa test"))


def test_a_certificate_under_another_name_is_not_taken(tmp_path):
    with pytest.raises(Malformed):
        check_certificate(Machine(tmp_path, 1, "hansa one").certificate, called("hansa other"))
