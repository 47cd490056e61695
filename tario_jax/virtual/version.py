"""The simulator's version, frozen by checksum: figures measured on one version say nothing of another."""

import hashlib
from pathlib import Path

VERSION = 2
FROZEN = "9b3a3bb174edadae6be3606932b3b513678beeaf386b1b10100e68622b28a118"
"""`checksum()` of this version. A test holds the two together: who changes what a patient's bits depend on raises
VERSION, writes the new checksum here, and measures every figure of virtual tissue again (`make claims LONG=1`)."""

_NO_BITS = ("__init__.py", "cohort.py", "gallery.py", "version.py")  # a patient's bits do not depend on these


def checksum() -> str:
    """SHA-256 of the simulator's code and tables."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".tsv", ".txt") and path.name not in _NO_BITS:
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
