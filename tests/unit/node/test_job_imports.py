"""Imports that a job would not find are told before it is sent, and nothing is told of those that it will."""

import pytest

from hansa.node.jobs.job_imports import MOST_TOLD, unknown_imports, warnings


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import numpy as np\nimport no_such_thing.deep\n", {"no_such_thing": 2}),
        ("def train(ctx):\n    from no_such_thing import a\n", {"no_such_thing": 2}),
        ("import json, ray, safetensors.numpy\nfrom hansa.worker.context import Context\n", {}),
        ("import beside\nimport package.part\nfrom . import other\n", {}),
        ("try:\n    import no_such_thing\nexcept ImportError:\n    no_such_thing = None\n", {}),
        ("if False:\n    import no_such_thing\n", {}),
    ],
)
def test_only_what_nobody_brings_is_unknown(tmp_path, code, found):
    (tmp_path / "beside.py").touch()
    (tmp_path / "package").mkdir()
    source = tmp_path / "train.py"
    source.write_text(code)
    assert unknown_imports(source, tmp_path) == found


def test_a_warning_names_the_place_and_the_remedy_and_they_are_few(tmp_path):
    source = tmp_path / "train.py"
    source.write_text("\n".join(f"import no_such_thing_{number}" for number in range(50)))
    told = list(warnings(source, tmp_path))
    assert len(told) == MOST_TOLD
    assert told[1].startswith("warning: train.py:2 imports no_such_thing_1")
    assert '[environment] dependencies = ["no_such_thing_1"]' in told[1]
