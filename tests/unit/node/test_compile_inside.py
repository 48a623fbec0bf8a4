"""What of a stranger's packages is compiled."""

import os

from hansa.node.runs.compile_inside import modules_below


def test_only_files_that_are_sources_are_compiled(tmp_path):
    (tmp_path / "package").mkdir()
    source = tmp_path / "package" / "one.py"
    source.write_text("", "utf-8")
    (tmp_path / "package" / "data.txt").write_text("", "utf-8")
    (tmp_path / "package" / "folder.py").mkdir()
    (tmp_path / "elsewhere.py").symlink_to(source)
    os.mkfifo(tmp_path / "package" / "pipe.py")
    assert modules_below(str(tmp_path)) == [str(source)]
