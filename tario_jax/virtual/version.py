"""The simulator's version, frozen by checksum: figures measured on one version say nothing of another."""

import hashlib
from pathlib import Path

VERSION = 3
FROZEN = "73f2141fcc09438d548120cb26dc8f25331e4b18f3a4c93058f6942f108fd1c3"
"""`checksum()` of this version. A test holds the two together: who changes what a patient's bits depend on raises
VERSION, writes the new checksum here, and measures every figure of virtual tissue again (`make claims LONG=1`)."""

# a patient's bits do not depend on these
_NO_BITS = ("__init__.py", "cell_truth.py", "cohort.py", "gallery.py", "version.py")


def checksum() -> str:
    """SHA-256 of the simulator's code and tables."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".tsv", ".txt") and path.name not in _NO_BITS:
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
