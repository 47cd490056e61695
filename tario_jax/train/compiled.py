"""Compiled programs outlive the process: a run that is started again reads its step instead of compiling it."""

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_HIT = "/jax/compilation_cache/cache_hits"


@contextlib.contextmanager
def compiled_kept(workdir: Path) -> Iterator[None]:
    """What jax compiles meanwhile is kept in `<workdir>/compiled/<this kind of machine>`, and read from there.

    Where a folder is named already (`JAX_COMPILATION_CACHE_DIR`, or by whoever calls), it is that one; in a workdir
    that may only be read, nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir is not None or not os.access(workdir, os.W_OK):
        yield
        return
    # of the small programs there are many, and a start waits for all of them
    ours = {"jax_compilation_cache_dir": str(workdir.resolve() / "compiled" / _machine()),
            "jax_persistent_cache_min_compile_time_secs": 0.0}  # fmt: skip
    before = {name: getattr(jax.config, name) for name in ours}
    try:
        for name, value in ours.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # jax opens one folder, once, unless told
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def compiled(step, arrays: tuple, say: Callable[[str], None]) -> Callable[..., Any]:
    """The jitted `step` compiled for these (abstract) arrays, once: it refuses arrays of other shapes, types or places.

    Says how long it took, and whether it was compiled or read.
    """
    say("compiling the step: minutes for a large model, seconds if it was compiled before")
    began, read = time.monotonic(), []
    lowered = step.lower(*arrays)

    def listen(event: str, **_) -> None:
        if event == _HIT:
            read.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        program = lowered.compile()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    took = f"in {time.monotonic() - began:.1f} s"
    folder = jax.config.jax_compilation_cache_dir
    if read:
        say(f"step read from {folder} {took}")
    else:
        say(f"step compiled {took}" + (f", kept in {folder}" if folder else ""))
    return program


def _machine() -> str:
    """Of the processor, as XLA sees it: what was compiled for one may not run on another, and jax does not tell them
    apart. (Accelerators it does.)"""
    told = [platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        of_first = cpuinfo.read_text().split("\n\n")[0].splitlines()
        told += [line for line in of_first if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return f"{platform.machine()}-{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}"
