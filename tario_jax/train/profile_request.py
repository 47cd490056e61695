"""A profiler trace that somebody asks for while the run goes on: `tario trace WORKDIR`."""

import json
from collections.abc import Callable
from pathlib import Path

import jax

from tario_jax.train.run_files import REQUEST


class ProfileRequest:
    """Takes <workdir>/trace.request, and traces as many of the next steps into <workdir>/traces/step_<first>."""

    def __init__(self, workdir: Path, traced: Callable[[int, Path], None]):
        self._path, self._folder, self._traced = workdir / REQUEST, workdir / "traces", traced
        self._wanted = 0  # steps
        self._until: int | None = None
        self._into: Path | None = None

    def look(self) -> None:
        """Whether somebody asks; cheap, called by another thread."""
        if self._wanted or self._until is not None or not self._path.exists():
            return
        try:
            wanted = int(json.loads(self._path.read_text())["steps"])
        except (ValueError, KeyError, TypeError):
            wanted = 0  # not one of ours: it is taken away
        self._path.unlink(missing_ok=True)
        self._wanted = max(wanted, 0)

    def before_step(self, step: int, drain: Callable[[], None]) -> None:
        """Begins or ends a trace before `step` (counted from 1) is dispatched. drain(): waits for the steps before."""
        if self._until is not None and step > self._until:
            drain()
            self.end()
        if self._wanted and self._until is None:
            drain()
            self._into = self._folder / f"step_{step:06d}"
            self._until, self._wanted = step + self._wanted - 1, 0
            jax.profiler.start_trace(str(self._into))

    def end(self) -> None:
        """Ends the trace that is being made, if one is."""
        if self._until is None:
            return
        jax.profiler.stop_trace()
        self._traced(self._until, self._into)
        self._until = None
