"""What the demo says of a daemon that ended."""

from hansa.node.commands.demo_nodes import last_words


def test_of_a_daemon_that_ended_the_reason_is_said_and_its_own_hint(tmp_path):
    log = tmp_path / "node.log"
    log.write_text("12:00:01 began\nhansa: no sandbox can be made here\nhint: install bubblewrap\n\n", "utf-8")
    assert last_words(log) == ("no sandbox can be made here", "install bubblewrap")


def test_where_it_gave_no_hint_the_log_is_named(tmp_path):
    log = tmp_path / "node.log"
    log.write_text("hansa: all went dark\n", "utf-8")
    assert last_words(log) == ("all went dark", f"see its log: {log}")


def test_one_that_said_nothing_or_left_no_log_is_told_of_too(tmp_path):
    log = tmp_path / "node.log"
    assert last_words(log)[0] == "it left no log"
    log.write_text("\n", "utf-8")
    assert last_words(log)[0] == "it said nothing"
    log.write_text("hint: only this\n", "utf-8")
    assert last_words(log)[0] == "hint: only this"
