"""What leaves a machine: signed at the edge, cut to what a peer reads, and the same at every replay."""

from hypothesis import given
from hypothesis import strategies as st
from kit.trading import BUYER_KEY, tender

from hansa.market.effects import clipped, clipped_inside, derived_nonce, sealed, unsigned
from hansa.proto.messages import RunStopOrdered, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import signer_of


def test_what_a_machine_left_unsigned_is_signed_at_the_edge():
    message = sealed(TenderSent(tender=unsigned(tender())), BUYER_KEY)
    assert signer_of(DOMAIN, message.tender) == BUYER_KEY.address


def test_sealing_twice_gives_the_same_bytes():
    once = sealed(TenderSent(tender=unsigned(tender())), BUYER_KEY)
    assert sealed(once, BUYER_KEY) == once


def test_a_message_without_documents_stays_as_it_is():
    message = RunStopOrdered(lease=bytes(32), reason="enough")
    assert sealed(message, BUYER_KEY) is message


def test_a_nonce_follows_from_what_it_belongs_to():
    assert derived_nonce(b"a", b"b") == derived_nonce(b"a", b"b")
    assert len({derived_nonce(b"a", b"b"), derived_nonce(b"b", b"a"), derived_nonce(b"a"), derived_nonce()}) == 4


@given(st.text(), st.integers(0, 64))
def test_a_text_is_cut_between_letters_and_fits(text, size_bytes):
    cut = clipped(text, size_bytes)
    assert len(cut.encode()) <= size_bytes
    assert text.encode(errors="replace").decode().startswith(cut)
    assert len(text.encode(errors="replace")) > size_bytes or cut == text.encode(errors="replace").decode()


@given(st.text(), st.integers(16, 64))
def test_a_text_that_is_cut_inside_keeps_both_ends_and_fits(text, size_bytes):
    whole = text.encode(errors="replace").decode()
    cut = clipped_inside(text, size_bytes)
    assert len(cut.encode()) <= size_bytes
    if len(whole.encode()) <= size_bytes:
        assert cut == whole
    else:
        begin, end = cut.split("\n[…]\n", 1) if cut.count("\n[…]\n") == 1 else ("", "")
        assert whole.startswith(begin)
        assert whole.endswith(end)
