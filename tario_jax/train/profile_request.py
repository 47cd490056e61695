"""A profiler trace that somebody asks for while the run goes on: `tario trace WORKDIR`."""

import json
from collections.abc import Callable
from pathlib import Path

import jax

from tario_jax.train.run_files import REQUEST


class ProfileRequest:
    """Takes <workdir>/trace.request, and traces as many of the next steps into <workdir>/traces/step_<first>.

    One that cannot be written is told, and no more: the run goes on. traced(step, folder): of one that is there.
    """

    def __init__(self, workdir: Path, traced: Callable[[int, Path], None], say: Callable[[str], None]):
        self._path, self._folder, self._traced, self._say = workdir / REQUEST, workdir / "traces", traced, say
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
            self.end(step - 1)
        if self._wanted and self._until is None:
            drain()
            self._into, wanted, self._wanted = self._folder / f"step_{step:06d}", self._wanted, 0
            if self._try(lambda: jax.profiler.start_trace(str(self._into))):
                self._until = step + wanted - 1

    def end(self, step: int) -> None:
        """Ends the trace that is being made, if one is, after `step`."""
        if self._until is None:
            return
        self._until = None
        if self._try(jax.profiler.stop_trace):
            self._traced(step, self._into)

    def _try(self, do: Callable[[], None]) -> bool:
        try:
            do()
        except Exception as error:  # a full disk, a profiler that somebody else runs: whatever it raises
            self._say(f"{self._into}: no profiler trace: {' '.join(str(error).split())[:200]}; training goes on")
            return False
        return True
