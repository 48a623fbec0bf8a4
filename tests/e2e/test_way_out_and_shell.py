"""A run that looks outside and a buyer who looks inside, over real daemons and a real sandbox."""

import contextlib
import os
import pty
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from kit.market import await_job, await_that, providers_known, submit

from hansa.node.commands.demo_nodes import DemoNode, DemoNodes

JOB = """
name = "looking"
entry = "look.py:look"
shards = 1

[resources]
kind = "cpu"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "5 min"

[tender]
bids = "2 s"
meter = "1 s"

[network]
allow = ["*"]
bytes = "1 MiB"
"""
LOOK = """
import json
import os
import time
import urllib.error
import urllib.request

PLACES = {
    "metadata": "http://169.254.169.254/latest",
    "gateway": "http://192.168.0.1/",
    "loopback through the proxy": "http://127.0.0.2:80/",
    "nowhere": "http://nowhere.invalid/",
}


def look(ctx):
    proxy = urllib.request.ProxyHandler({"http": os.environ["HTTP_PROXY"]})
    opener = urllib.request.build_opener(proxy)
    opener.addheaders = []
    found = {}
    for name, url in PLACES.items():
        request = urllib.request.Request(url)
        request.set_proxy("127.0.0.1:3128", "http")
        try:
            with opener.open(request, timeout=30) as answer:
                found[name] = [answer.status, answer.read().decode()]
        except urllib.error.HTTPError as fault:
            found[name] = [fault.code, fault.read().decode()]
    print("found " + json.dumps(found), flush=True)
    step = 0
    while not os.path.exists("/tmp/enough"):
        step += 1
        ctx.report(step=step)
        time.sleep(0.2)
"""


def hansa(node: DemoNode, *words: str) -> list[str]:
    return [sys.executable, "-m", "hansa", words[0], "--data", str(node.made.config.data_dir), *words[1:]]


def ran(node: DemoNode, *words: str, typed: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(hansa(node, *words), input=typed, capture_output=True, timeout=60, check=False)


def ran_at_terminal(node: DemoNode, *words: str, typed: list[tuple[bytes, bytes]]) -> tuple[bytes, int]:
    """Run at a terminal; each time a mark has been shown, something is typed. Gives what was shown, and the status."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(hansa(node, *words), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 60
    with contextlib.suppress(OSError):  # EIO: everybody else has closed it
        while time.monotonic() < deadline:
            if typed and typed[0][0] in shown:
                os.write(ours, typed.pop(0)[1])
            shown += os.read(ours, 4096)
    status = process.wait(timeout=20)
    os.close(ours)
    return shown, status


def test_a_run_gets_out_to_public_hosts_only_and_its_buyer_gets_in(tmp_path: Path) -> None:
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "job.toml").write_text(JOB)
    (directory / "look.py").write_text(textwrap.dedent(LOOK))
    with DemoNodes(prices=("0.30",)) as nodes:
        nodes.make()
        config = nodes.nodes[0].made.config.data_dir / "config.toml"
        config.write_text(config.read_text().replace("\nallow = []\n", '\nallow = ["*"]\n'))
        nodes.start()
        await_that(lambda: len(providers_known(nodes)) == 1, 90, "the buyer knows the provider")
        job = submit(nodes, directory)
        await_that(lambda: b"found" in ran(nodes.buyer, "logs", job).stdout, 90, "the job has looked outside")

        log = ran(nodes.buyer, "logs", job).stdout.decode()
        assert "[provider] network: *; at most 1048576 bytes" in log
        assert log.count('[403, "hansa: private addresses can never be reached\\n"]') == 3
        assert '[502, "hansa: nowhere.invalid cannot be found\\n"]' in log

        every = bytes(range(256)) * 100
        assert ran(nodes.buyer, "exec", job, "--", "cat", typed=every).stdout == every
        status = ran(nodes.buyer, "exec", job, "--", "sh", "-c", "ls /job/code >&2; exit 4")
        assert (status.returncode, status.stdout) == (4, b"")
        assert b"look.py" in status.stderr
        shown, code = ran_at_terminal(
            nodes.buyer,
            "exec",
            job,
            typed=[(b"$ ", b"echo $((6 * 7)) on $(tty)\r"), (b"42 on /dev", b"touch /tmp/enough; exit 3\r")],
        )
        assert b"42 on /dev" in shown
        assert code == 3
        assert await_job(nodes, job, 60)["phase"] == "succeeded"
        late = ran(nodes.buyer, "exec", job, "true")
        assert late.returncode == 2
        assert b"no shard runs: the job has succeeded" in late.stderr
