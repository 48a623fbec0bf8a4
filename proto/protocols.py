"""Names under which nodes speak to each other, and how large their messages may be."""

VERSION = 4
"""Version of the message set. A node answers every version that it knows and refuses the others by name."""

HELLO = "/hansa/hello/1"
MARKET = "/hansa/market/1"
BOOK = "/hansa/book/1"
BOOK_SYNC = "/hansa/book/2"
PEERS = "/hansa/peers/1"
BLOB = "/hansa/blob/1"
BULK = "/hansa/bulk/1"
SHELL = "/hansa/shell/1"
KEYS = "/hansa/keys/1"

ADVERT_TOPIC = "/hansa/adverts/1"

MAX_HELLO_BYTES = 2 << 10
MAX_ADVERT_BYTES = 64 << 10
MAX_MARKET_BYTES = 256 << 10
MAX_KEYS_BYTES = 512
MAX_BOOK_BYTES = 1 << 20
MAX_BOOK_REQUEST_BYTES = 256 << 10


def advert_topic(name: str) -> str:
    """The gossip topic of one class of adverts (``hansa.scheduler.advert_classes``)."""
    return f"{ADVERT_TOPIC}/{name}"
