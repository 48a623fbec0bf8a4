"""What other wallets are given to sign is the very document: their digest of it is ours."""

import json

from drawn_documents import any_document
from eth_account.messages import encode_typed_data
from eth_utils import keccak
from hypothesis import given, settings

from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.foreign_typed_data import foreign_digest
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.proto.typed_payload import typed_payload

ON_CHAIN = currency_of(escrow_currency(8453, b"\5" * 20, b"\6" * 20)).domain


@settings(max_examples=150, deadline=None)
@given(any_document())
def test_any_document_has_one_digest_whoever_works_it_out(document):
    for domain in (DOMAIN, ON_CHAIN):
        payload = json.loads(json.dumps(typed_payload(domain, document)))
        assert foreign_digest(payload) == digest(domain, document)
    theirs = encode_typed_data(full_message=payload)
    assert keccak(b"\x19\x01" + theirs.header + theirs.body) == digest(ON_CHAIN, document)
