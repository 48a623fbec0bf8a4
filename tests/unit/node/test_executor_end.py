from hansa.node.executor_end import LARGEST_REASON_CHARS, clipped_reason


def test_of_a_long_reason_the_beginning_and_the_end_are_kept():
    reason = "exited with status 3\n" + "frame\n" * 2000 + "SystemExit: 3"
    kept = clipped_reason(reason)
    assert len(kept) == LARGEST_REASON_CHARS
    assert kept.startswith("exited with status 3\n")
    assert kept.endswith("SystemExit: 3")
    assert "[…]" in kept


def test_a_short_reason_stays_as_it_is_but_for_what_could_steer_a_terminal():
    assert clipped_reason("short \x1b[2J") == "short [2J"
