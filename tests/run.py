"""Run the suite as some runs of pytest, three at a time.

    python tests/run.py [PYTEST'S OPTIONS]

Tests that use the machine itself (users, control groups, networks, time) come one after another within their run, and
most of that is waiting; those of a process compute. One run that computes and two that wait keep two cores at work. The
first run is seen as it goes on, the output of the others when all are done.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
NETWORKS = ("hostile", "interop", "namespaces")
PARTS_OF_INTEGRATION = 4
AT_A_TIME = 3
NO_TESTS_COLLECTED = 5


def main() -> int:
    """Gives the worst of all ends."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        ended = [
            pool.submit(_pytest, name, present, seen=name == "e2e")
            for name, where in _runs().items()
            if (present := [str(path) for path in where if path.exists()])
        ]
        ends = [each.result() for each in ended]
    for _, _, said in ends:
        sys.stdout.write(said)
    print("; ".join(f"{name}: {_word(status)}" for name, status, _ in ends), flush=True)
    return max((status for _, status, _ in ends if status != NO_TESTS_COLLECTED), key=abs, default=0)


def _runs() -> dict[str, list[Path]]:
    """What each of them runs: the longest first, and one that computes at a time."""
    apart = {"e2e", "integration", *NETWORKS, "unit", "node", "__pycache__"}
    places = sorted(path for path in (*HERE.iterdir(), *(HERE / "unit").iterdir()) if path.name not in apart)
    integration = sorted((HERE / "integration").glob("test_*.py"))
    parts = [integration[first::PARTS_OF_INTEGRATION] for first in range(PARTS_OF_INTEGRATION)]
    return {
        "e2e": [HERE / "e2e"],
        "node": [HERE / "unit" / "node"],
        "integration-1": parts[0],
        "integration-2": parts[1],
        "others": [path for path in places if path.is_dir() or path.name.startswith("test_")],
        "integration-3": parts[2],
        "integration-4": parts[3],
        "networks": [HERE / name for name in NETWORKS],
    }


def _pytest(name: str, places: list[str], *, seen: bool) -> tuple[str, int, str]:
    # A cache for each: they would write the same files.
    command = [sys.executable, "-m", "pytest", *sys.argv[1:], "-o", f"cache_dir=.pytest_cache/{name}", *places]
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
