"""Compiles the modules of a job's packages, in a room: whatever one of them costs, it costs that one and no more.

Python's compiler is no match for a stranger's source: 82 KB of a wheel made it take gigabytes, and others keep it busy
for hours. So a child does the work within limits that no honest module comes near (the largest of the packages known
to us need less than 64 MiB); what is over them is left as it is, and the next child goes on with the next module. What
is not compiled here, Python compiles in the run, at the run's own cost.

Run as a program with a directory as its argument, by an interpreter that sees nothing of Hansa.
"""

import os
import py_compile
import resource
import sys
from pathlib import Path

MOST_MEMORY_BYTES = 256 << 20
"""Of address space, for each of the children."""
MOST_CPU_S = 20
CHILDREN = 2


def modules_below(directory: str) -> list[str]:
    """The sources there, by name; links lead nowhere that is to be compiled, and who opens a pipe waits for ever."""
    found = []
    for folder, _folders, files in os.walk(directory):
        sources = (Path(folder, name) for name in files if name.endswith(".py"))
        found += [str(path) for path in sources if path.is_file() and not path.is_symlink()]
    return sorted(found)


def compile_one(path: str) -> bool:
    """Compile a source; whether the compiler may be trusted with another after it."""
    try:
        # What is built is never changed, so nobody need look again whether it still is what was compiled.
        py_compile.compile(path, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except py_compile.PyCompileError as fault:
        return fault.exc_type_name != "MemoryError"
    except (MemoryError, RecursionError):
        return False
    except (OSError, ValueError):
        return True
    return True


def compile_some(paths: list[str], begun: int) -> None:
    """In a child: compile these one after the other, with a byte to ``begun`` for each before it."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    for path in paths:
        os.write(begun, b".")
        used = resource.getrusage(resource.RUSAGE_SELF)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + MOST_CPU_S, most))
        if not compile_one(path):
            return


def compile_all(paths: list[str]) -> None:
    """Compile these by children, each of which goes on behind the module that the one before it did not survive."""
    while paths:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                compile_some(paths, writing)
            finally:
                os._exit(0)
        os.close(writing)
        begun = 0
        while piece := os.read(reading, 4096):
            begun += len(piece)
        os.close(reading)
        os.waitpid(pid, 0)
        if begun == 0:
            return  # none can even begin
        paths = paths[begun:]


def main(directory: str) -> None:
    """Compile all that lies in a directory."""
    paths = modules_below(directory)
    shares = [paths[number::CHILDREN] for number in range(CHILDREN)]
    pids = []
    for share in shares[1:]:
        pid = os.fork()
        if pid == 0:
            try:
                compile_all(share)
            finally:
                os._exit(0)
        pids.append(pid)
    compile_all(shares[0])
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1])
