"""Run the suite as five runs of pytest, three at a time: four of tests that use the machine itself, one of all others.

    python tests/run.py [PYTEST'S OPTIONS]

Those that use the machine (users, control groups, networks, time) come one after another within their run, and most of
that is waiting: three at a time keep two cores at work. The first run is seen as it goes on, the output of the others
when all are done.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
USE_THE_MACHINE = ("integration", "e2e", "hostile", "interop", "namespaces")
AT_A_TIME = 3
NO_TESTS_COLLECTED = 5


def main() -> int:
    """Gives the worst of all ends."""
    apart = {*USE_THE_MACHINE, "__pycache__"}
    places = sorted(path for path in HERE.iterdir() if path.is_dir() or path.name.startswith("test_"))
    integration = sorted((HERE / "integration").glob("test_*.py"))
    # The longest first; what is left goes to whichever place is free.
    runs = {
        "e2e": [HERE / "e2e"],
        "others": [path for path in places if path.name not in apart],
        "integration": integration[::2],
        "more integration": integration[1::2],
        "networks": [HERE / name for name in ("hostile", "interop", "namespaces")],
    }
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        ended = [
            pool.submit(_pytest, name, present, seen=name == "e2e")
            for name, where in runs.items()
            if (present := [str(path) for path in where if path.exists()])
        ]
        ends = [each.result() for each in ended]
    for _, _, said in ends:
        sys.stdout.write(said)
    print("; ".join(f"{name}: {_word(status)}" for name, status, _ in ends), flush=True)
    return max((status for _, status, _ in ends if status != NO_TESTS_COLLECTED), key=abs, default=0)


def _pytest(name: str, places: list[str], *, seen: bool) -> tuple[str, int, str]:
    # A cache for each: they would write the same files.
    command = [
        sys.executable,
        "-m",
        "pytest",
        *sys.argv[1:],
        "-o",
        f"cache_dir=.pytest_cache/{name.replace(' ', '-')}",
        *places,
    ]
    if seen:
        return name, subprocess.run(command, check=False).returncode, ""
    with tempfile.TemporaryFile("w+") as said:
        status = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, check=False).returncode
        said.seek(0)
        return name, status, said.read()


def _word(status: int) -> str:
    return "passed" if status in (0, NO_TESTS_COLLECTED) else f"FAILED (status {status})"


if __name__ == "__main__":
    sys.exit(main())
