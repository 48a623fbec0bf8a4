"""Imports that a job would not find are told before it is sent, and nothing is told of those that it will."""

import pytest

from hansa.node.jobs.job_imports import MOST_TOLD, warnings


def told(directory, code, **others):
    for name, text in {"train.py": code, **others}.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return [line.removeprefix("warning: ").partition(", ")[0] for line in warnings(directory / "train.py", directory)]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import numpy as np\nimport no_such_thing.deep\n", ["train.py:2 imports no_such_thing"]),
        ("def train(ctx):\n    from no_such_thing import a\n", ["train.py:2 imports no_such_thing"]),
        ("import json, ray, msgpack, safetensors.numpy\nfrom hansa.worker.context import Context\n", []),
        ("import beside\nimport package.part\nfrom . import other\n", []),
        ("try:\n    import no_such_thing\nexcept ImportError:\n    no_such_thing = None\n", []),
        ("if False:\n    import no_such_thing\n", []),
        ("import pytest, hypothesis\n", ["train.py:1 imports pytest", "train.py:1 imports hypothesis"]),
    ],
)
def test_only_what_nobody_brings_is_unknown(tmp_path, code, found):
    (tmp_path / "beside.py").touch()
    (tmp_path / "package").mkdir()
    assert told(tmp_path, code) == found


def test_what_the_jobs_own_modules_import_is_looked_at_too(tmp_path):
    others = {
        "model.py": "import no_such_thing\nimport train\n",
        "nets__first.py": "import one_more_thing\nfrom . import second\n",
        "nets__second.py": "from .third import it\n",
        "nets__third.py": "\nimport nor_this\n",
        "unused.py": "import not_looked_at\n",
    }
    assert told(tmp_path, "import model\nfrom nets.first import Net\n", **others) == [
        "model.py:1 imports no_such_thing",
        "nets/first.py:1 imports one_more_thing",
        "nets/third.py:2 imports nor_this",
    ]


def test_a_module_of_the_jobs_that_is_no_python_is_named_with_its_line(tmp_path):
    assert told(tmp_path, "import helper\n", **{"helper.py": "a = 1\ndef x(:\n"}) == ["helper.py:2: is no valid Python"]


def test_modules_beside_an_entry_that_lies_deeper_are_not_found_from_there(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "helper.py").touch()
    (tmp_path / "src" / "train.py").write_text("import helper\nimport src.helper\n")
    (line,) = warnings(tmp_path / "src" / "train.py", tmp_path)
    assert line.startswith("warning: src/train.py:1 imports helper")


def test_a_warning_names_the_place_and_the_remedy_and_they_are_few(tmp_path):
    source = tmp_path / "train.py"
    source.write_text("\n".join(f"import no_such_thing_{number}" for number in range(50)))
    lines = list(warnings(source, tmp_path))
    assert len(lines) == MOST_TOLD
    assert lines[1].startswith("warning: train.py:2 imports no_such_thing_1")
    assert '[environment] dependencies = ["no_such_thing_1"]' in lines[1]
