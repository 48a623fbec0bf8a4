"""Run the suite: the tests that use the machine itself one after another, and all others beside them.

    python tests/run.py [PYTEST'S OPTIONS]

The first are those of tests/integration, tests/e2e and tests/namespaces: users, control groups, namespaces, time. Most
of it is waiting, so the whole takes little more than half as long on two cores. The output of the others comes when
both are done.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
USE_THE_MACHINE = ("integration", "e2e", "namespaces")
NO_TESTS_COLLECTED = 5


def main() -> int:
    """Gives the worse of the two ends."""
    options = sys.argv[1:]
    places = sorted(path for path in HERE.iterdir() if path.is_dir() or path.name.startswith("test_"))
    machine = [str(path) for path in places if path.name in USE_THE_MACHINE]
    others = [str(path) for path in places if path.name not in USE_THE_MACHINE and path.name != "__pycache__"]
    pytest = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile("w+") as said:
        # A cache of its own: both would write the same files.
        cache = ["-o", "cache_dir=.pytest_cache/others"]
        with subprocess.Popen([*pytest, *cache, *others], stdout=said, stderr=subprocess.STDOUT) as beside:
            status = subprocess.call([*pytest, *machine])
            beside.wait()
        said.seek(0)
        sys.stdout.write(said.read())
    ends = {status, beside.returncode} - {0, NO_TESTS_COLLECTED}
    print(f"tests that use the machine: {_word(status)}; all others: {_word(beside.returncode)}", flush=True)
    return max(ends, key=abs) if ends else 0


def _word(status: int) -> str:
    return "passed" if status in (0, NO_TESTS_COLLECTED) else f"FAILED (status {status})"


if __name__ == "__main__":
    sys.exit(main())
