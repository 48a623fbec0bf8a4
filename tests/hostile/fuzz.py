"""Every reader of strangers' bytes for hours, with coverage leading the way: ``make fuzz``.

    python tests/hostile/fuzz.py [--reader NAME] [--corpus DIR] [-- LIBFUZZER'S OPTIONS]

Without a name the first byte of each input chooses the reader. The corpus grows in build/fuzz; what ends a reader is
written to build/fuzz-found. Needs ``atheris``: ``pip install -e '.[dev,fuzz]'``.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["hansa", "msgpack", "zeroconf"]):
    from hostile.readers import READERS, seeds

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(READERS)


def one(data: bytes) -> None:
    """One input, whose first byte says which reader gets it."""
    if data:
        READERS[NAMES[data[0] % len(NAMES)]](data[1:])


def main() -> None:
    """Write the sound bytes down, and begin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=NAMES)
    parser.add_argument("--corpus", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("options", nargs="*", help="of libFuzzer, after --, such as -max_total_time=3600")
    told = parser.parse_args()
    found = told.corpus.with_name(told.corpus.name + "-found")
    for folder in (told.corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        for place, seed in enumerate(seeds()[name]):
            if told.reader in (None, name):
                first = b"" if told.reader else bytes((number,))
                (told.corpus / f"sound-{number}-{place}").write_bytes(first + seed)
    argv = [sys.argv[0], str(told.corpus), f"-artifact_prefix={found}/", "-max_len=16384", "-rss_limit_mb=4096"]
    atheris.Setup([*argv, *told.options], READERS[told.reader] if told.reader else one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
