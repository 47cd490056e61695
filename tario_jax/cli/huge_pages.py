"""Memory in huge pages, where a machine gives them to those who ask.

XLA's buffers on a CPU are new at every step, and a fifth of a small model's step goes into their pages of 4 kB. Pages
of 2 MB spare that. Where the kernel gives them on request only (`madvise`, as on Ubuntu and in most containers), the C
library has to ask, and it reads what it is told once, when a process starts: so the command starts itself again, in the
same process, before it has imported anything large.
"""

import os
import sys
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"  # glibc 2.35; others do not know it, and go on as they are
_GIVEN = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def tunables(before: str, given: Path = _GIVEN) -> str | None:
    """GLIBC_TUNABLES with which huge pages are asked for; None where that would change nothing: they are given to all
    or to none, or a choice was made (`glibc.malloc.hugetlb=0` refuses them)."""
    try:
        on_request = "[madvise]" in given.read_text()
    except OSError:  # not Linux, or a sandbox that does not say
        return None
    if not on_request or TUNABLE in before:
        return None
    return ":".join(filter(None, (before, f"{TUNABLE}=1")))


def start_again(given: Path = _GIVEN) -> None:
    """Returns where nothing is to be asked for; else the same command, from its first line."""
    asked = tunables(os.environ.get("GLIBC_TUNABLES", ""), given)
    if asked is None or not sys.executable or "jax" in sys.modules:
        return
    os.environ["GLIBC_TUNABLES"] = asked  # of the processes that this one starts, too
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
