"""A replay of the ledger believes no splits but those that a channel's config names."""

from dataclasses import replace

import pytest
from kit.trading import BUYER, CHANNEL

from hansa.market.ledger_check import SIGNATURES, LedgerCheck
from hansa.market.ledger_records import FiledChannel
from hansa.market.receipts import NOTHING
from hansa.proto.codec import encode
from hansa.proto.keccak import keccak256
from hansa.proto.splits import Split, splits_hash

SPLITS = (Split(account=b"a" * 20, bps=250),)
NAMED = replace(CHANNEL, splits_hash=splits_hash(SPLITS))


@pytest.mark.parametrize(
    ("config", "splits", "holds"),
    [(CHANNEL, (), True), (NAMED, SPLITS, True), (NAMED, (), False), (CHANNEL, SPLITS, False)],
)
def test_filed_splits_are_those_whose_hash_the_channel_was_signed_for(config, splits, holds):
    filed = FiledChannel(currency="USD", config=config, splits=splits)
    body = encode(filed)
    check = LedgerCheck(owner=BUYER)
    check.take((1, filed.id, body, keccak256(NOTHING + body)))
    findings = {finding.name: finding for finding in check.report().findings}
    assert findings[SIGNATURES].holds == holds, findings[SIGNATURES].words
