"""An honest job: has something of every kind that a neighbour could reach, counts, and says at the end what it has."""

import ctypes
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p


def main(ctx):
    """Count until the round is answered; a neighbour that hurts shows in ``end.json`` or in the run's failing."""
    marker, key = ctx.parameters["marker"], ctx.parameters["key"]
    places = [Path("/dev/shm", marker), Path("/tmp", marker), Path("/job/work", marker)]
    for place in places:
        place.write_text(marker)
    servers = [socket.create_server(("0.0.0.0", 0)), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    servers[1].bind("\0" + marker)
    servers[2].bind(f"/tmp/{marker}.sock")
    for server in servers[1:]:
        server.listen()
    segment = libc.shmget(key, 4096, 0o1666)  # refused where nobody would count it
    memory = ctypes.c_char_p(libc.shmat(segment, None, 0) if segment >= 0 else None)
    if segment >= 0:
        ctypes.memmove(memory, marker.encode(), len(marker))
    queue = libc.mq_open(f"/{marker}".encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
    child = subprocess.Popen(["/usr/bin/sleep", "7777", "--", marker][:2])
    named = subprocess.Popen(["/usr/bin/sh", "-c", "exec sleep 7777", marker])
    print("FACTS" + json.dumps({"ports": listening_ports(), "queue": queue >= 0, "segment": segment >= 0}), flush=True)
    answered = []
    threading.Thread(target=lambda: answered.append(ctx.sync({"x": 1.0})), daemon=True).start()
    steps = 0
    while not answered:
        steps += 1
        ctx.report(step=steps)
        time.sleep(0.05)
    end = {
        "steps": steps,
        "files": [place.read_text() == marker for place in places],
        "memory": segment < 0 or memory.value.decode() == marker,
        "children": [child.poll() is None, named.poll() is None],
        "connections": connections(servers),
        "answer": answered[0]["x"],
    }
    (ctx.outputs / "end.json").write_text(json.dumps(end))


def listening_ports():
    """Every port that somebody listens on in this network, Ray's among them."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return sorted(ports)


def connections(servers):
    """How many came to the servers, which nobody has a reason to speak to."""
    count = 0
    for server in servers:
        server.setblocking(False)
        try:
            while True:
                server.accept()[0].close()
                count += 1
        except BlockingIOError:
            continue
    return count
