"""Grants for bulk channels: one certificate, one token, once, for a while, and not too many."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hansa.node.storage.bulk_grants import GRANT_LIFE_S, MOST_GRANTS, MOST_GRANTS_OF_ONE, BulkGrants


def made() -> tuple[BulkGrants, Counter[str]]:
    counters: Counter[str] = Counter()
    return BulkGrants(lambda reason: counters.update((reason,))), counters


def test_a_grant_is_used_once_by_the_one_it_was_given_to():
    grants, counters = made()
    grant = grants.give("peer", b"certificate", "fetch", 0.0)
    assert grants.certificates(1.0) == [b"certificate"]
    assert grants.redeem(grant.token, b"certificate", 1.0) == grant
    assert grants.redeem(grant.token, b"certificate", 1.0) is None
    assert grants.certificates(1.0) == []
    assert counters == {"bulk.token_unknown": 1}


def test_whoever_tries_anothers_token_uses_it_up():
    grants, counters = made()
    grant = grants.give("peer", b"certificate", "fetch", 0.0)
    assert grants.redeem(grant.token, b"another", 1.0) is None
    assert grants.redeem(grant.token, b"certificate", 1.0) is None
    assert counters == {"bulk.token_of_another": 1, "bulk.token_unknown": 1}


def test_a_grant_is_over_after_its_time():
    grants, counters = made()
    grant = grants.give("peer", b"certificate", "serve", 0.0)
    assert grants.certificates(GRANT_LIFE_S - 0.1)
    assert grants.redeem(grant.token, b"certificate", GRANT_LIFE_S) is None
    assert counters["bulk.grant_expired"] == 1


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 3)), max_size=200))
def test_there_are_never_more_than_so_many_of_one_and_in_all(wishes):
    grants, _ = made()
    now_s, given = 0.0, []
    for peer, pause_s in wishes:
        now_s += pause_s
        grant = grants.give(f"peer {peer}", bytes((peer,)), "fetch", now_s)
        given = [each for each in given if each.until_s > now_s] + ([grant] if grant else [])
        of_one = Counter(each.peer_id for each in given)
        assert len(given) <= MOST_GRANTS
        assert max(of_one.values(), default=0) <= MOST_GRANTS_OF_ONE
        assert set(grants.certificates(now_s)) == {each.certificate for each in given}
    assert len({each.token for each in given}) == len(given)
