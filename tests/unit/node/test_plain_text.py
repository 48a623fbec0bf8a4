"""Strangers' words on a terminal: plain, short, and with what matters still in them."""

from hypothesis import given
from hypothesis import strategies as st

from hansa.node.plain_text import plain, summary

TRACE = (
    'its code failed: Traceback (most recent call last):\n  File "/job/code/a.py", line 3, in main\n\nValueError: bad\n'
)


def test_a_traceback_in_one_line_says_what_it_was():
    assert summary(TRACE, 200) == "its code failed: ValueError: bad"
    assert summary(TRACE.removeprefix("its code failed: "), 200) == "ValueError: bad"


def test_a_reason_of_one_line_stays_as_it_is():
    assert summary("the lease is over", 200) == "the lease is over"
    assert summary("", 200) == ""


@given(st.text(max_size=300), st.integers(16, 80))
def test_whatever_is_said_comes_out_as_one_printable_line_of_the_allowed_length(text, limit):
    for made in (plain(text, limit), summary(text, limit)):
        assert made.isprintable()
        assert len(made) <= limit + 2


def test_a_reason_that_ends_in_the_marks_below_a_line_of_code_says_something_else_than_those():
    assert summary(TRACE + "\n    ^^^^~~^^^^\n", 200) == "its code failed: ValueError: bad"
    assert summary("^^^^", 200) == ""
