"""Of a large book as much is explained as somebody may wait for, and what is left out is counted."""

from types import SimpleNamespace

from hansa.node.api import market_desk
from hansa.node.api.market_desk import MarketDesk


class Book:
    """Ten who are known, of whom the last six fit, the cheapest of them the last."""

    def __init__(self):
        self.adverts = [SimpleNamespace(signer=f"provider {number}") for number in range(10)]

    def standing(self):
        return [SimpleNamespace(advert=advert) for advert in self.adverts]

    def serving(self, _needs, _currency, _ceiling):
        return iter(self.adverts[:3:-1])


def explained(monkeypatch, fitting, known):
    monkeypatch.setattr(market_desk, "MOST_FITTING", fitting)
    monkeypatch.setattr(market_desk, "MOST_EXPLAINED", known)
    desk = MarketDesk.__new__(MarketDesk)
    desk._daemon = SimpleNamespace(book=Book())
    spec = SimpleNamespace(requirements=None, currency=None, price_ceiling_e18_per_device_ms=None)
    chosen, unseen = desk._adverts(spec)
    return [int(advert.signer.split()[1]) for advert in chosen], unseen


def test_the_cheapest_that_fit_come_first_and_then_others_as_far_as_there_is_time(monkeypatch):
    assert explained(monkeypatch, 2, 3) == ([9, 8, 0, 1, 2], 5)
    assert explained(monkeypatch, 0, 4) == ([0, 1, 2, 3], 6)
    assert explained(monkeypatch, 3, 0) == ([9, 8, 7], 7)


def test_who_fits_and_is_among_the_others_too_is_explained_once(monkeypatch):
    assert explained(monkeypatch, 6, 6) == ([9, 8, 7, 6, 5, 4, 0, 1, 2, 3], 0)
