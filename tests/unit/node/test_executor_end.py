import pytest
from integration.sandbox_harness import an_order

from hansa.node.isolation.launcher_protocol import Ended
from hansa.node.runs.executor_end import LARGEST_REASON_CHARS, Circumstances, Over, clipped_reason, last_event


def test_of_a_long_reason_the_beginning_and_the_end_are_kept():
    reason = "exited with status 3\n" + "frame\n" * 2000 + "SystemExit: 3"
    kept = clipped_reason(reason)
    assert len(kept) == LARGEST_REASON_CHARS
    assert kept.startswith("exited with status 3\n")
    assert kept.endswith("SystemExit: 3")
    assert "[…]" in kept


def test_a_short_reason_stays_as_it_is_but_for_what_could_steer_a_terminal():
    assert clipped_reason("short \x1b[2J") == "short [2J"


@pytest.mark.parametrize(("kind", "told"), [("refused", False), ("sandbox-lost", False), ("user-exception", True)])
def test_a_buyer_is_not_told_where_things_lie_on_this_machine(tmp_path, kind, told):
    order = an_order(tmp_path, "")
    words = "bwrap: Can't find source path /var/lib/hansa/runs/x: No such file"
    over = Over(kind, "no sandbox: [Errno 2] No such file: '/var/lib/hansa/code'")
    ended = Ended(run=order.run, status=1, memory_kills=0, peak_bytes=0, words=words)
    reason = last_event(order, over, Circumstances(stopping=False, kept=None, ended=ended), 1).reason
    assert ("/var/lib/hansa" in reason) == told, "only a job's own words are passed on as they are"
    assert "No such file" in reason
