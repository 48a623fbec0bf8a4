"""Bacalhau's job, in YAML or JSON: one task of an engine, with what it needs and where its results are."""

import re
from collections.abc import Mapping

from hansa.node.jobs.import_job import Draft
from hansa.node.jobs.import_quantities import HUMAN, cores_milli, size_bytes
from hansa.node.jobs.import_shell import hosts_in, packages_in
from hansa.node.jobs.import_yaml import Value, shown

SYSTEM = "Bacalhau"
KINDS = ("batch", "ops", "service", "daemon")
_STAYS = ("service", "daemon")
TEMPLATE = re.compile(r"\{\{\s*\.?([A-Za-z_][A-Za-z0-9_.]{0,60})\s*\}\}", re.ASCII)


def read_bacalhau(top: Value) -> Draft:
    """Read a job.

    Raises:
        ConfigError: it is none, or one that Hansa has no way to run.
    """
    _fold(top)
    draft = Draft(system=SYSTEM)
    kind = top.need("Type", f"say which: {', '.join(KINDS)}")
    if kind.text() not in KINDS:
        raise kind.fault(f'"{shown(kind.text())}" is no type of job', f"known: {', '.join(KINDS)}")
    if kind.text() in _STAYS:
        raise kind.fault(f"a {kind.text()} job runs until it is stopped, and a job here ends", "import a batch job")
    name = top.get("Name")
    if name is not None:
        draft.name = name.text()
        draft.carry(name.place, name.text(), "name")
    count = top.get("Count")
    if kind.text() == "ops":
        draft.leave(kind.place, "ops", "it runs on every node that fits; a job runs on as many as shards says: 1")
        draft.leave_value(count, "an ops job has no count")
    elif count is not None:
        draft.shards = count.integer(1, 1024)
        draft.carry(count.place, count.text(), "shards, which all start or none" if draft.shards > 1 else "shards")
    tasks = top.need("Tasks", "a job has one task").items()
    if len(tasks) != 1:
        raise top.fault(f"has {len(tasks)} tasks, and a job is one", "leave one of them")
    _task(tasks[0], draft)
    for key, why in (
        ("Namespace", "Hansa has no namespaces"),
        ("Labels", "labels are for Bacalhau's own lists"),
        ("Meta", "notes of Bacalhau's own"),
        ("Priority", "there is no queue of your own jobs"),
        ("Constraints", "they compare labels that Bacalhau's nodes give themselves; say what is needed in needs"),
    ):
        draft.leave_value(top.get(key), why)
    _check_templates(draft)
    draft.leave_unread(top)
    return draft


def _fold(value: Value) -> None:
    """Bacalhau reads keys in any case."""
    value.folded = True
    below = value.content.values() if isinstance(value.content, dict) else value.content
    for child in below if isinstance(value.content, list | dict) and below is not None else ():
        if isinstance(child, Value):
            _fold(child)


def _task(task: Value, draft: Draft) -> None:
    task_name = task.get("Name")
    if task_name is not None:
        task_name.skip()
    engine = task.need("Engine", "say what runs: Engine: Type: docker")
    kind = engine.need("Type", "write Type: docker")
    if kind.text() == "noop":
        raise kind.fault(
            "noop is an engine that does nothing, so there is no job to import", "name a job that runs something"
        )
    if kind.text() == "wasm":
        raise kind.fault("wasm is WebAssembly, and a job here is Python", "write it as a Python function")
    if kind.text() != "docker":
        raise kind.fault(
            f'"{shown(kind.text())}" is no engine that hansa import knows', "Bacalhau's own are docker and wasm"
        )
    params = engine.need("Params", "write Params: Image: NAME")
    draft.image = params.need("Image", "write Image: NAME").text().strip()
    texts = []
    for key in ("Entrypoint", "Parameters"):
        value = params.get(key)
        if value is not None:
            texts += [item.text() for item in value.items() if item.content is not None]
            draft.leave(value.place, "", "a job is a Python function, not a command: its main() does this")
    draft.leave_value(params.get("WorkingDirectory"), "the code lies in /job/code, and starts in an empty directory")
    variables: list[tuple[str, str | None, str]] = []
    own = params.get("EnvironmentVariables")
    for item in () if own is None else own.items():
        key, equals, text = item.text().partition("=")
        variables.append((key.strip(), text if equals else None, item.place))
    env = task.get("Env")
    if env is not None:
        variables += [(key, None if v.content is None else v.text(), v.place) for key, v in env.entries()]
    draft.set_env(variables)
    draft.hosts = hosts_in((*texts, *(key for key, _, _ in variables)))
    draft.packages = packages_in(texts)
    _resources(task, draft)
    _limits(task, draft)
    _data(task, draft)
    _network(task, draft)
    draft.leave_value(task.get("Meta"), "notes of Bacalhau's own")


def _resources(task: Value, draft: Draft) -> None:
    resources = task.get("Resources") or task.get("ResourcesConfig")
    if resources is None:
        return
    cpu, memory = resources.get("CPU"), resources.get("Memory")
    disk, gpu = resources.get("Disk"), resources.get("GPU")
    if cpu is not None:
        draft.cores_milli = cores_milli(cpu)
        draft.carry(cpu.place, cpu.text(), "resources.cores")
    if memory is not None:
        draft.memory_bytes = size_bytes(memory, HUMAN)
        draft.carry(memory.place, memory.text(), "resources.memory")
    if disk is not None:
        draft.disk_bytes = size_bytes(disk, HUMAN)
        draft.carry(disk.place, disk.text(), "resources.disk")
    if gpu is not None:
        draft.devices = gpu.integer(0, 64)
        if draft.devices:
            draft.carry(gpu.place, gpu.text(), "resources.devices, of any model")


def _limits(task: Value, draft: Draft) -> None:
    timeouts = task.get("Timeouts")
    if timeouts is None:
        return
    run, total = timeouts.get("ExecutionTimeout"), timeouts.get("TotalTimeout")
    longest = run or total
    if longest is not None and (seconds := longest.integer(0, 1 << 31)):
        draft.wall_ms = seconds * 1000
        draft.carry(longest.place, f"{seconds} s", "limits.wall")
    if run is not None:
        draft.leave_value(total, "limits.wall bounds a run; nothing bounds waiting and running together")
    queue = timeouts.get("QueueTimeout")
    if queue is not None and (seconds := queue.integer(0, 1 << 31)):
        draft.queue_ms = seconds * 1000
        draft.carry(queue.place, f"{seconds} s", "tender.queue_timeout")


def _data(task: Value, draft: Draft) -> None:
    sources = task.get("InputSources")
    for source in () if sources is None else sources.items():
        target, alias = source.get("Target"), source.get("Alias")
        label = (target or alias or source).path if (target or alias) is None else (target or alias or source).text()
        draft.leave(
            source.place,
            label,
            "data comes from your own disk: download it, and name it in [inputs]; the code finds it below ctx.inputs",
        )
        source.skip()
    results = task.get("ResultPaths")
    for result in () if results is None else results.items():
        path = result.get("Path")
        draft.leave(
            result.place,
            "" if path is None else path.text(),
            "results are what lies in ctx.outputs at the end: write there; hansa results fetches it",
        )
        result.skip()
    draft.leave_value(task.get("Publisher"), "results come to your own node, and are published nowhere")


def _network(task: Value, draft: Draft) -> None:
    network = task.get("Network")
    if network is None:
        return
    kind, domains = network.get("Type"), network.get("Domains")
    names = () if domains is None else tuple(item.text() for item in domains.items())
    if names:
        draft.hosts = tuple(
            dict.fromkeys((*hosts_in(f"https://{name.removeprefix('.')}/" for name in names), *draft.hosts))
        )
    if kind is not None and kind.text().lower() not in ("none", ""):
        draft.leave(kind.place, kind.text(), "a job names the hosts that it speaks to: [network] allow")
    network.skip()


def _check_templates(draft: Draft) -> None:
    """Marks that nobody filled in: a variable's value is no value then."""
    for name, value in list(draft.env.items()):
        if found := TEMPLATE.search(value):
            del draft.env[name]
            draft.carried = [remark for remark in draft.carried if remark.how != f"parameters.env.{shown(name)}"]
            draft.leave(f"variable {shown(name)}", found[0], f"is a template: fill it in with --set {found[1]}=VALUE")
    if found := TEMPLATE.search(draft.name):
        draft.write(f"the name: --set {found[1]}=VALUE fills in {found[0]}")


def templates_in(text: str) -> Mapping[str, None]:
    """Names of all templates in a text, in order."""
    return dict.fromkeys(match[1] for match in TEMPLATE.finditer(text))
