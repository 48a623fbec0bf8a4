"""A document of ours as the typed data that other wallets sign: JSON that brings its own types (EIP-712).

For keys that are not ours to hold: an external signer or another wallet is given the whole document to show to its
owner, and signs the same digest that ``hansa.proto.typed_data`` works out here.
"""

from typing import Any

from hansa.proto.foreign_typed_data import DOMAIN_NAME
from hansa.proto.signing import checksum_address
from hansa.proto.typed_data import Domain, documents_below, members_of
from hansa.proto.typed_json import to_plain


def typed_payload(domain: Domain, document: object) -> dict[str, Any]:
    """The document as ``{types, primaryType, domain, message}``.

    Raises:
        Malformed: a field's value is not of its exact type, length or range.
    """
    cls = type(document)
    structs = {
        name: [{"name": member.name, "type": member.solidity} for member in members_of(found)]
        for name, found in documents_below(cls).items()
    }
    return {
        "types": {
            DOMAIN_NAME: [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            **structs,
        },
        "primaryType": cls.__name__,
        "domain": {
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": checksum_address(domain.verifying_contract),
        },
        "message": to_plain(document),
    }
