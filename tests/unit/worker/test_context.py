import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto import messages
from hansa.proto.frames import MAX_METRICS
from hansa.proto.tensors import decode_state, encode_state
from hansa.worker.context import Context, Stopping
from hansa.worker.shard_worker import load_entry
from hansa.worker.states import back_into, to_arrays
from hansa.worker.task_records import Records, value_record
from hansa.worker.tasks import PoolRoom


class Line:
    """Keeps what was told and answers every round at once."""

    def __init__(self, *, stopping=False, leaving=False):
        self.told = []
        self.data = []
        self.stopping = stopping
        self.leaving = leaving
        self.waited = False

    def tell(self, *message):
        self.told.append(message)

    def hand_over(self, kind, data, *facts):
        self.told.append((kind, *facts))
        self.data.append(data)

    def wait_for_round(self, at_least):
        if self.stopping:
            raise Stopping
        return at_least + 2, decode_state(self.data[-1])

    def wait_for_end(self):
        self.waited = True


def a_context(line=None, **changes):
    facts = {
        "shard": 0, "shards": 1, "worker": 0, "workers": 1, "parameters": {}, "inputs": Path("i"),
        "outputs": Path("o"), "round_number": 0, "checkpoint": None, "line": line or Line(),
    }  # fmt: skip
    return Context(**{**facts, **changes})


@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 5))
def test_all_shares_together_are_all_items_once_and_nearly_equal(count, shards, workers):
    shares = [
        range(count)[a_context(shard=s, shards=shards, worker=w, workers=workers).share(count)]
        for s in range(shards)
        for w in range(workers)
    ]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_sync_gives_back_the_types_it_was_given_and_goes_on_from_the_published_round():
    ctx = a_context()
    state = {"a": np.ones(2, np.float16), "b": [1.5, (2,)], "name": "net", "flag": True, "none": None}
    back = ctx.sync(state)
    assert ctx.round == 3
    assert back["a"].dtype == np.float16
    assert [type(back[key]) for key in ("b", "name", "flag", "none")] == [list, str, bool, type(None)]
    assert back["b"] == [1.5, (2,)]
    back["a"][0] = 7  # the job may write into it


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_must_be_one(weight):
    with pytest.raises(ValueError, match="weight"):
        a_context().sync({}, weight=weight)


def test_a_checkpoint_knows_its_round_and_step_and_restores():
    line = Line()
    ctx = a_context(line, round_number=3)
    ctx.report(step=9, loss=0.5)
    ctx.checkpoint({"w": np.arange(3), "epoch": 4, "rate": 0.1, "name": "x", "list": [1]})
    assert line.told[-1] == ("checkpoint", 3, 9)
    again = a_context(checkpoint=memoryview(line.data[-1]))
    assert again.round == 3
    restored = again.restore()
    assert restored["w"].tolist() == [0, 1, 2]
    assert {key: value for key, value in restored.items() if key != "w"} == {
        "epoch": 4, "rate": 0.1, "name": "x", "list": [1],
    }  # fmt: skip


def test_a_run_that_joins_later_than_its_checkpoint_is_in_the_later_round():
    line = Line()
    a_context(line, round_number=3).checkpoint({})
    assert a_context(checkpoint=line.data[-1], round_number=8).round == 8


def test_only_worker_0_sends_checkpoints():
    line = Line()
    a_context(line, worker=1, workers=2).checkpoint({})
    assert line.told == []


def test_a_figure_that_is_no_number_is_logged_and_left_out():
    line = Line()
    a_context(line).report(step=1, loss=float("nan"), accuracy=0.5)
    assert line.told[0][:2] == ("log", "stderr")
    assert line.told[1] == ("report", 1, (("accuracy", 0.5),))


def test_metrics_beyond_what_a_message_carries_are_named_once_and_the_first_are_told():
    line = Line()
    ctx = a_context(line)
    many = {f"m{number}": float(number) for number in range(34)}
    for step in (1, 2):
        ctx.report(step=step, **many)
    logged = [message for message in line.told if message[0] == "log"]
    assert logged == [
        ("log", "stderr", b"of 34 metrics of a step only the first 32 are kept: m32 is left out, and 1 more\n")
    ]
    reports = [message for message in line.told if message[0] == "report"]
    assert [[name for name, _ in metrics] for _, _, metrics in reports] == [list(many)[:MAX_METRICS]] * 2
    assert MAX_METRICS == messages.MAX_METRICS


def test_a_run_that_is_to_end_ends_at_the_next_call_and_no_except_exception_keeps_it():
    assert not issubclass(Stopping, Exception)
    for call in (lambda ctx: ctx.sync({}), lambda ctx: ctx.report(step=1)):
        with pytest.raises(Stopping):
            call(a_context(Line(stopping=True)))


def test_a_run_that_is_stopped_may_still_save():
    line = Line(stopping=True)
    a_context(line).checkpoint({"w": np.ones(1)})
    assert line.told == [("checkpoint", 0, 0)]
    assert not line.waited


def test_a_run_that_leaves_ends_at_its_checkpoint_once_that_is_stored():
    line = Line(leaving=True)
    ctx = a_context(line)
    assert ctx.leaving
    ctx.report(step=1)
    with pytest.raises(Stopping):
        ctx.checkpoint({"w": np.ones(1)})
    assert line.told[-1] == ("checkpoint", 0, 1)
    assert line.waited


def test_a_run_that_left_ends_in_every_worker_at_its_next_call_and_saves_no_more():
    for worker in (0, 1):
        line = Line(leaving=True, stopping=True)
        ctx = a_context(line, worker=worker, workers=2)
        for call in (lambda ctx: ctx.checkpoint({}), lambda ctx: ctx.report(step=2), lambda ctx: ctx.sync({})):
            with pytest.raises(Stopping):
                call(ctx)
        assert line.told == []


def test_a_state_is_what_it_was_when_it_was_given():
    line, state = Line(), {"w": np.ones(2)}
    a_context(line).checkpoint(state)
    state["w"][:] = 7
    assert decode_state(line.data[0])["state"]["w"].tolist() == [1, 1]


class Tensor:
    """As much of torch's tensor as is used, in numpy."""

    def __init__(self, array, dtype, device="cuda:0"):
        self.array, self.dtype, self.device = np.asarray(array), dtype, device

    def detach(self):
        return self

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.array.astype(np.float32), "torch.float32")

    def numpy(self):
        if self.dtype == "torch.bfloat16":
            raise TypeError("numpy has no bfloat16")
        return self.array

    def to(self, dtype, device):
        return Tensor(self.array, dtype, device)


def test_torch_tensors_come_back_as_tensors_of_the_same_type_and_device(monkeypatch):
    torch = types.SimpleNamespace(Tensor=Tensor, from_numpy=lambda array: Tensor(array, "torch.float32", "cpu"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    template = {"w": Tensor([1.0, 2.0], "torch.bfloat16")}
    arrays = to_arrays(template)
    assert arrays["w"].dtype == np.float32
    back = back_into(template, arrays)
    assert (back["w"].dtype, back["w"].device) == ("torch.bfloat16", "cuda:0")


def test_torch_is_never_imported_for_a_job_without_it():
    to_arrays({"w": np.ones(1)})
    assert "torch" not in sys.modules


def test_what_has_no_numbers_is_refused():
    with pytest.raises(TypeError, match="neither"):
        to_arrays({"w": object()})


def test_a_state_of_plain_arrays_survives_the_checkpoint_file():
    line = Line()
    a_context(line).checkpoint(np.arange(4))
    assert decode_state(line.data[0])["state"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "entry", ["../job.py:main", "/etc/passwd:main", "absent.py:main", "job.py:absent", "job.py:number"]
)
def test_an_entry_that_names_no_function_of_the_job_is_refused(tmp_path, entry, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    code = tmp_path / "code"
    code.mkdir()
    (tmp_path / "job.py").write_text("def main(ctx): pass\n")
    (code / "job.py").write_text("number = 1\n")
    with pytest.raises((FileNotFoundError, AttributeError, TypeError)):
        load_entry(code, entry)


ROOM = PoolRoom(gpus=0, threads=2, state_bytes=1 << 30)


def test_a_pools_checkpoint_holds_the_state_that_the_job_gave_last():
    line = Line()
    ctx = a_context(line, room=ROOM)
    ctx.checkpoint({"epoch": 4})
    ctx.tasks(abs, [-1, -2])
    ctx.keep_tasks()
    assert [decode_state(data)["state"] for data in line.data] == [{"epoch": 4}] * 2
    again = a_context(line, checkpoint=line.data[-1], room=ROOM)
    again.tasks(abs, [-1, -2])
    again.keep_tasks()
    assert decode_state(line.data[-1])["state"] == {"epoch": 4}


def test_a_large_state_is_not_held_twice_for_pools_and_none_of_them_takes_its_place():
    line = Line()
    ctx = a_context(line, room=ROOM)
    large = {"w": np.zeros(33 << 20, np.uint8)}
    ctx.checkpoint(large)
    ctx.tasks(abs, [-1])
    ctx.keep_tasks()
    assert len(line.data) == 1, "the state that is kept elsewhere is not here any more"
    line.leaving = True
    ctx.look_up()  # nor does it leave at a checkpoint that would lack it
    line.leaving = False
    ctx.checkpoint(large)
    ctx.keep_tasks()
    assert decode_state(line.data[2])["state"]["w"].nbytes == 33 << 20


def test_what_is_settled_is_kept_before_a_run_that_is_stopped_or_leaves_ends():
    for changes in ({"stopping": True}, {"leaving": True}):
        line = Line(**changes)
        ctx = a_context(line, room=ROOM)
        ctx.tasks(abs, [-1])
        ctx._pools.changed = True
        with pytest.raises(Stopping):
            ctx.look_up()
        assert len(line.data) == 1
        assert line.waited == ("leaving" in changes)
    line = Line(stopping=True)
    with pytest.raises(Stopping):
        a_context(line, room=ROOM).look_up()
    assert line.data == [], "nothing was settled since"


def test_pools_that_a_run_has_not_come_to_yet_stay_in_its_checkpoints():
    records = Records(0, 2)
    records.add(1, value_record(7))
    line = Line()
    kept = {"round": 0, "step": 3, "state": None, "tasks": {"later": records.to_state()}}
    ctx = a_context(line, checkpoint=encode_state(kept), room=ROOM)
    ctx.checkpoint({})
    assert list(decode_state(line.data[0])["tasks"]) == ["later"]
    first = next(ctx.tasks(abs, [-1, -2], name="later"))
    assert (first.index, first.item, first.value, first.attempts) == (1, -2, 7, 0)


@pytest.mark.parametrize("count", [1, 3])
def test_records_of_other_items_are_not_taken_for_those_of_these(count, capsys):
    records = Records(0, 2)
    records.add(0, value_record(7))
    kept = {"round": 0, "step": 3, "state": None, "tasks": {"abs": records.to_state()}}
    line = Line()
    ctx = a_context(line, checkpoint=encode_state(kept), room=ROOM)
    ctx.tasks(abs, [-1] * count)
    assert "are not those of the checkpoint" in capsys.readouterr().err
    ctx.checkpoint({})
    now = decode_state(line.data[0])["tasks"]["abs"]
    assert (now["count"], now["records"].size) == (count, 0)


def test_two_pools_of_one_name_are_refused_and_of_one_function_told_apart():
    line = Line()
    ctx = a_context(line, room=ROOM)
    for _ in range(2):
        ctx.tasks(abs, [-1])
    ctx.tasks(abs, [-1], name="mine")
    ctx.checkpoint({})
    assert list(decode_state(line.data[0])["tasks"]) == ["abs", "abs 2", "mine"]
    with pytest.raises(ValueError, match="a pool named 'mine'"):
        ctx.tasks(abs, [-1], name="mine")


def test_what_is_restored_may_be_changed_in_place_and_is_whole_the_next_time():
    """A job that goes on training in place would fail only on the day on which a provider is lost."""
    line = Line()
    a_context(line).checkpoint({"w": np.arange(3.0), "deep": [{"b": np.ones(2)}]})
    again = a_context(checkpoint=memoryview(line.data[-1]))
    for _ in range(2):
        restored = again.restore()
        assert restored["w"].tolist() == [0, 1, 2]
        restored["w"] += 1
        restored["deep"][0]["b"] *= 2
        assert restored["deep"][0]["b"].tolist() == [2, 2]


@pytest.mark.parametrize("asked", [{"workers": 0}, {"gpus_each": 0}, {"timeout_s": 0}, {"retries": -1}])
def test_a_pool_that_makes_no_sense_is_refused_before_its_items_are_looked_at(asked):
    def items():
        raise AssertionError("they were")
        yield

    context = a_context(room=PoolRoom(gpus=0, threads=1, state_bytes=1 << 20))
    with pytest.raises(ValueError, match=next(iter(asked))):
        context.tasks(len, items(), **asked)
