"""Names under which nodes speak to each other, and how large their messages may be."""

VERSION = 4
"""Version of the message set. A node answers every version that it knows and refuses the others by name."""

HELLO = "/hansa/hello/1"
MARKET = "/hansa/market/2"
OLDER_MARKET = "/hansa/market/1"
"""Of the time in which a lease's refusal named no kind, and nobody sent proofs of lies; see ``messages.as_of``."""
BOOK = "/hansa/book/1"
BOOK_SYNC = "/hansa/book/2"
PEERS = "/hansa/peers/1"
BLOB = "/hansa/blob/1"
BULK = "/hansa/bulk/1"
SHELL = "/hansa/shell/1"
KEYS = "/hansa/keys/1"

ADVERT_TOPIC = "/hansa/adverts/1"
OLDER_ADVERT_TOPIC = ADVERT_TOPIC
"""One topic for all adverts, of the time before there were classes."""

MAX_HELLO_BYTES = 2 << 10
MAX_ADVERT_BYTES = 64 << 10
MAX_MARKET_BYTES = 256 << 10
MAX_KEYS_BYTES = 512
MAX_BOOK_BYTES = 1 << 20
MAX_BOOK_REQUEST_BYTES = 256 << 10


def number_of(protocol_id: str) -> int:
    """The number at the end of a protocol's id, which says what is spoken under it."""
    return int(protocol_id.rpartition("/")[2])


def advert_topic(name: str) -> str:
    """The gossip topic of one class of adverts (``hansa.scheduler.advert_classes``)."""
    return f"{ADVERT_TOPIC}/{name}"
