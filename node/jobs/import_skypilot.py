"""SkyPilot's task: what each node needs, how many nodes, and the commands that set them up and run."""

import re
from collections.abc import Sequence

from hansa.node.jobs.import_gpus import add_choice, refuse_other_devices, require_choice
from hansa.node.jobs.import_job import Draft
from hansa.node.jobs.import_quantities import POWERS, cores_milli, size_bytes
from hansa.node.jobs.import_shell import hosts_in, packages_in
from hansa.node.jobs.import_yaml import Value, shown

SYSTEM = "SkyPilot"
MOST_NODES = 1024
_CLOUDS = (
    "Hansa has providers and no clouds; where they stand is asked for by region in needs (hansa providers lists them)"
)
_RESOURCES_LEFT = (
    ("infra", _CLOUDS),
    ("cloud", _CLOUDS),
    ("region", _CLOUDS),
    ("zone", _CLOUDS),
    ("instance_type", "types of machines are a cloud's own; say what the job needs of one"),
    ("disk_tier", "providers say nothing of their disks' speed"),
    ("network_tier", "providers say how fast their line is: download and upload in needs"),
    ("ports", "a job runs to its end and serves nobody: no port of it can be reached"),
    ("labels", "labels are a cloud's own"),
    ("autostop", "a lease ends with its run"),
    ("accelerator_args", "they are for TPUs"),
)


def read_skypilot(documents: Sequence[Value], part: str) -> Draft:
    """Read a task.

    Args:
        documents: the file's documents: one task, or a head and several.
        part: the task that is meant, if there are several; empty if nobody said.

    Raises:
        ConfigError: it is none, or more than one job.
    """
    task = _choose(documents, part)
    draft = Draft(system=SYSTEM)
    name = task.get("name")
    draft.name = "" if name is None else name.text()
    if name is not None:
        draft.carry(name.place, name.text(), "name")
    _nodes(task, draft)
    resources = task.get("resources")
    if resources is not None:
        _resources(resources, draft)
    _commands(task, draft)
    _files(task, draft)
    draft.leave_value(task.get("service"), "a job runs to its end and serves nobody; its replicas are no job's shards")
    draft.leave_value(task.get("config"), "settings of SkyPilot's own")
    draft.leave_unread(task)
    for document in documents:
        if document is not task:
            draft.leave(document.place, _name(document), "another task: --part takes it, one job at a time")
    return draft


def _name(document: Value) -> str:
    name = document.get("name")
    return "without a name" if name is None else name.text()


def _choose(documents: Sequence[Value], part: str) -> Value:
    tasks = [document for document in documents if "run" in document.mapping() or "resources" in document.mapping()]
    if part:
        for task in tasks:
            if _name(task) == part:
                return task
        raise documents[0].fault(f"has no task {shown(part)}", f"it has {', '.join(map(_name, tasks)) or 'none'}")
    if len(tasks) > 1:
        names = ", ".join(shown(_name(task)) for task in tasks)
        raise documents[0].fault(
            f"holds several tasks ({names}), and a job is one program",
            f"choose one with --part {shown(_name(tasks[0]))}",
        )
    return tasks[0] if tasks else documents[0]


def _nodes(task: Value, draft: Draft) -> None:
    nodes = task.get("num_nodes")
    if nodes is None:
        return
    count = nodes.integer(1, 1 << 31)
    if count > MOST_NODES:
        raise nodes.fault(f"a job has at most {MOST_NODES} shards, and this is {count}", "ask for fewer nodes")
    draft.shards = count
    if count > 1:
        draft.carry(nodes.place, count, "shards, which all start or none")
        draft.write(NODES_TALK)


NODES_TALK = (
    "what nodes did by talking to each other (MASTER_ADDR, torchrun, ray start): shards have no line to each other."
    " Average with ctx.sync, or put all GPUs into one shard (devices, several_machines)"
)


def _resources(resources: Value, draft: Draft) -> None:
    named = False
    for option in _options(resources):
        value = option.get("accelerators") or option.get("gpus")
        if value is not None:
            named = True
            _accelerators(value, draft)
    if named:
        require_choice(draft, resources)
        draft.devices = max(count for count, _ in draft.choices)
    for key, meaning in (("any_of", ""), ("ordered", ", the first liked best")):
        options = resources.get(key)
        if options is not None:
            for option in options.items():
                for name, value in option.entries():
                    if name not in ("accelerators", "gpus"):
                        draft.leave_value(
                            value, f"alternatives are GPUs only{meaning}; all else is asked of each provider"
                        )
    _sizes(resources, draft)
    _lease(resources, draft)
    _image(resources, draft)
    for key, why in _RESOURCES_LEFT:
        draft.leave_value(resources.get(key), why)


def _options(resources: Value) -> list[Value]:
    """Where accelerators may stand: in each alternative, else in the resources themselves."""
    options = [
        option for key in ("ordered", "any_of") if (found := resources.get(key)) is not None for option in found.items()
    ]
    return (
        [*options, resources]
        if not any(_has_gpus(option) for option in options)
        else [o for o in options if _has_gpus(o)]
    )


def _has_gpus(option: Value) -> bool:
    return option.get("accelerators") is not None or option.get("gpus") is not None


def _accelerators(value: Value, draft: Draft) -> None:
    """``A100``, ``A100:8``, ``{A100: 8, L4: 1}``, ``[A100:8, L4:1]``."""
    if value.is_mapping:
        for name, count in value.entries():
            _accelerator(count, name if count.content is None else f"{name}:{count.text()}", draft)
    else:
        for item in value.items():
            _accelerator(item, item.text(), draft)


def _accelerator(value: Value, text: str, draft: Draft) -> None:
    name, _, count = text.strip().partition(":")
    refuse_other_devices(value, name)
    digits = count.strip().removesuffix(".0") or "1"
    if not digits.isascii() or not digits.isdigit() or not 1 <= int(digits[:9]) <= 64:
        if re.fullmatch(r"0?\.[0-9]+", digits):
            hint = f"write {shown(name)}:1 here, and share = {digits} in the job that comes of it"
            raise value.fault(f"{shown(text)} is part of a GPU, which is not carried over", hint)
        raise value.fault(f"{shown(text)} is no GPU with a number from 1 to 64", "write for example A100:8")
    add_choice(draft, value, int(digits), text=name)


def _sizes(resources: Value, draft: Draft) -> None:
    cpus, memory, disk = resources.get("cpus"), resources.get("memory"), resources.get("disk_size")
    if cpus is not None:
        draft.cores_milli = cores_milli(cpus, text=cpus.text().strip().removesuffix("+"))
        draft.carry(cpus.place, cpus.text(), "resources.cores, which is always the least")
    if memory is not None:
        text = memory.text().strip().removesuffix("+")
        if text.lower().endswith("x"):
            draft.leave(memory.place, text, "so many GB for each core is not carried over; set resources.memory")
        else:
            draft.memory_bytes = size_bytes(memory, POWERS, text=text, bare=1 << 30)
            draft.carry(memory.place, memory.text(), "resources.memory, which is always the least")
    if disk is not None:
        draft.disk_bytes = size_bytes(disk, POWERS, bare=1 << 30)
        draft.carry(disk.place, disk.text(), "resources.disk")


def _lease(resources: Value, draft: Draft) -> None:
    spot = resources.get("use_spot")
    if spot is not None:
        draft.lease = "any" if spot.boolean() else "firm"
        how = "any lease, also one whose devices may be taken back" if spot.boolean() else "a firm lease"
        draft.carry(spot.place, spot.text(), how)
    cost = resources.get("max_hourly_cost")
    if cost is not None:
        draft.price_per_hour = cost.number() / max(draft.devices, 1)
        draft.carry(cost.place, cost.text(), "budget.price_ceiling_per_hour, for one of its devices")
    recovery = resources.get("job_recovery")
    if recovery is not None:
        strategy = recovery.get("strategy") if recovery.is_mapping else recovery
        draft.leave_value(
            strategy, "a shard that loses its provider is always tendered again, from its last checkpoint"
        )
        restarts = recovery.get("max_restarts_on_errors") if recovery.is_mapping else None
        if restarts is not None:
            draft.retries = restarts.integer(0, 100)
            draft.retry_own_errors = True
            draft.carry(restarts.place, restarts.text(), "retry.most, after the code's own errors, too")
        if recovery.is_mapping:
            draft.leave_value(recovery.get("min_nodes"), "all shards of a job start, or none")


def _image(resources: Value, draft: Draft) -> None:
    image = resources.get("image_id")
    if image is None:
        return
    if image.is_mapping or not image.text().strip().startswith("docker:"):
        draft.leave_value(image, "a cloud's image of a machine; name a container's: docker:NAME")
        return
    draft.image = image.text().strip().removeprefix("docker:")


def _commands(task: Value, draft: Draft) -> None:
    texts = []
    for key in ("setup", "run"):
        value = task.get(key)
        if value is not None:
            texts += [item.text() for item in value.items() if item.content is not None]
            why = "a job is a Python function, not a command: its main() does this"
            draft.leave(value.place, "", why if key == "run" else "what it installs comes by [environment], at once")
    variables = []
    for key in ("envs", "secrets"):
        value = task.get(key)
        for name, one in [] if value is None else value.entries():
            variables.append((name, None if one.content is None else one.text(), one.place))
            if key == "secrets":
                draft.secrets.append(shown(name))
                draft.leave(one.place, name, "every provider of a job can read what it brings")
                variables.pop()
    draft.set_env(variables)
    draft.hosts = hosts_in((*texts, *(name for name, _, _ in variables)))
    draft.packages = packages_in(texts)


def _files(task: Value, draft: Draft) -> None:
    workdir = task.get("workdir")
    if workdir is not None and workdir.is_mapping:
        url = workdir.get("url")
        draft.leave_value(workdir, "a job's code is the directory that its job.toml lies in", what=_host(url))
        draft.write("the code: clone the workdir's repository, and put job.toml into it")
    elif workdir is not None:
        draft.leave(workdir.place, workdir.text(), "a job's code is the directory that its job.toml lies in")
        draft.write(f"the code: put job.toml into {shown(workdir.text())}")
    for key in ("file_mounts", "storage_mounts", "volumes"):
        value = task.get(key)
        for path, source in [] if value is None else value.entries():
            bucket = source.is_mapping or "://" in source.text()
            why = (
                "a bucket is not mounted: download what the job reads, as [inputs]; results go to ctx.outputs"
                if bucket
                else "name it in [inputs]; the code finds it below ctx.inputs"
            )
            draft.leave(source.place, path, why)
            source.skip()


def _host(url: Value | None) -> str:
    found = () if url is None else hosts_in((url.text(),))
    return found[0] if found else ""
