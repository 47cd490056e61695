"""Checkpoints: Orbax writes them while training goes on; a seal says that one is whole.

`<workdir>/checkpoints/<step>/` holds the arrays (Orbax), provenance.json, and the seal, which is written last and
becomes visible with all of it by one rename. One whose files are not what its seal says is damaged, and the one before
it is used.
"""

import contextlib
import difflib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tario_jax.config import InputError
from tario_jax.model.build import Built, Tree
from tario_jax.parallel.hosts import is_first
from tario_jax.train.hush import Hush
from tario_jax.train.provenance import Provenance
from tario_jax.train.seal import damage, seal
from tario_jax.train.stability import Health
from tario_jax.train.state import TrainState

_PROVENANCE = "provenance.json"
_ITEMS = ("parameters", "calibration", "optimiser", "counters", "average")
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what Orbax has not renamed yet
_DELETING, _DAMAGED = ".deleting", ".damaged"
_FAILURES_IN_ROW = 3  # of saves, after which a run stops
_COMPARED = 64  # newest steps that processes agree on


class Checkpoints:
    """The checkpoints of a workdir, to read."""

    def __init__(self, workdir: Path):
        self.folder = (workdir / "checkpoints").resolve()
        self._reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._reader.close()

    @property
    def steps(self) -> list[int]:
        """All steps that Orbax has finished, in ascending order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def newest(self, say: Callable[[str], None], before: int | None = None) -> int | None:
        """The newest step (at most `before`) whose files are what was written; None where there is no checkpoint.

        Says which ones are damaged. Raises `InputError` where there are checkpoints and none is whole, or where a file
        of one cannot be read. All processes are to call it, and get the same.
        """
        steps = [step for step in self._agreed(self.steps) if before is None or step <= before]
        faults = []
        for step in reversed(steps):
            if (fault := self.damage(step)) is None:
                for line in faults:
                    say(f"{line}; step {step} is used")
                return step
            faults.append(f"{self.folder / str(step)}: is damaged: {fault}")
        if faults:
            raise InputError(f"{'; '.join(faults)}; none is whole: restore the files, or use another --workdir")
        return None

    def damage(self, step: int) -> str | None:
        """What of a checkpoint is not as it was written; None where it is whole. Processes share the reading.

        Raises `InputError`, in all of them, where a file cannot be read.
        """
        folder = self.folder / str(step)
        if jax.process_count() == 1:
            return damage(folder)
        found, unread = None, None
        try:
            found = damage(folder, jax.process_index(), jax.process_count())
        except InputError as error:
            unread = error
        broken_Px2 = multihost_utils.process_allgather(np.array([found is not None, unread is not None]))
        damaging, failing = (int(np.argmax(broken_P)) for broken_P in broken_Px2.T)
        if broken_Px2[:, 1].any():
            raise unread or InputError(f"{folder}: process {failing} cannot read all of it, and says which file")
        return (found or f"process {damaging} says which file") if broken_Px2.any() else None

    def provenance(self, step: int) -> Provenance:
        where = self.folder / str(step)
        return Provenance.from_json(json.loads((where / _PROVENANCE).read_text()), str(where))

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of `step`, on the mesh that `abstract`'s shardings name."""
        found = {"average": {}} | self._read(step, _items(abstract))
        counters = found.pop("counters")
        return TrainState(step=counters.pop("step"), health=Health(**counters), **found)

    def model(self, step: int, built: Built, mesh: Mesh) -> tuple[Tree, Tree]:
        """Parameters and calibration of `step` on `mesh`: the parameters' running mean where the run kept one."""
        averaged = (self.folder / str(step) / "average").is_dir()
        names = ("average" if averaged else "parameters", "calibration")
        wanted = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            built.abstract(), built.shardings(mesh),
        )  # fmt: skip
        found = self._read(step, dict(zip(names, wanted, strict=True)))
        return found[names[0]], found[names[1]]

    def _read(self, step: int, abstract: dict[str, Tree]) -> dict[str, Tree]:
        args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        return dict(self._reader.restore(self.folder / str(step), args=ocp.args.Composite(**args)))

    def _agreed(self, steps: list[int]) -> list[int]:
        """Those that process 0 sees: on a shared disk another one may see them a moment later."""
        if jax.process_count() == 1:
            return steps
        newest = np.full(_COMPARED, -1, np.int32)
        newest[: len(steps[-_COMPARED:])] = steps[-_COMPARED:]
        return [int(step) for step in multihost_utils.broadcast_one_to_all(newest) if step >= 0]


class CheckpointWriter(Checkpoints):
    """The checkpoints of the run that trains here. All processes of it make the same calls.

    keep: so many of the newest stay, and for good those whose step is a multiple of `keep_every` (0: none). reach: one
    that lies so many steps before the newest stays too, wherever saves out of turn fell. What a killed run left
    half-written or half-deleted is removed.
    """

    def __init__(self, workdir: Path, *, keep: int, keep_every: int, say: Callable[[str], None], reach: int = 0):
        # (event, step, text) of what becomes of saves: saved, save_failed
        self.tell: Callable[[str, int, str], None] = lambda event, step, text: event == "saved" or say(text)
        super().__init__(workdir)
        self._writer = self._begin_writer()
        self._keep, self._keep_every, self._reach = keep, keep_every, reach
        self._saving: tuple[int, Provenance] | None = None
        self._failures, self._hush = 0, Hush()
        if is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if _UNFINISHED in path.name or path.name.endswith(_DELETING):
                    shutil.rmtree(path)

    def _begin_writer(self) -> ocp.AsyncCheckpointer:
        # compressed, the numbers of a state take 8 % less of a disk, and twice the time of a core to write
        handlers = {name: ocp.PyTreeCheckpointHandler(use_compression=False) for name in _ITEMS}
        options = ocp.AsyncOptions(post_finalization_callback=self._complete)
        return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers), async_options=options)

    def __enter__(self) -> "CheckpointWriter":
        self._hush.begin()
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(Exception):  # whoever wanted to know of a failed save has called `finish`
            self._writer.close()
        self._reader.close()
        if not self._failures:  # what is left of a failed save speaks up as late as when the process ends
            self._hush.end()

    def save(self, state: TrainState, provenance: Provenance) -> None:
        """Copies the state, and returns while it is written. A save that fails is told, and no checkpoint.

        Raises `InputError` where several in a row failed, or where one of several processes cannot save.
        """
        self._settle()
        step = int(state.step)
        if step in self._agreed(self.steps):  # of this run, or it would have been set aside
            return
        self._saving = step, provenance
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in _items(state).items()}
        try:
            self._writer.save(self.folder / str(step), args=ocp.args.Composite(**items))
        except Exception as error:  # whatever Orbax, TensorStore or the system raise
            self._failed(error)

    def finish(self) -> None:
        """Waits for the last save. Raises `InputError` where it failed."""
        self._settle()
        if self._failures:
            raise InputError(f"{self.folder}: the last checkpoint could not be written; make room there, and run the "
                             "same command: it continues from the newest one")  # fmt: skip

    def set_aside(self, after: int) -> None:
        """Damaged checkpoints after a step are renamed: the run writes its own there."""
        for step in self.steps if is_first() else ():
            if step > after:
                aside = self.folder / f"{step}{_DAMAGED}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)

    def go_back(self, before: int, say: Callable[[str], None]) -> int | None:
        """The newest whole step, at most `before`; those after it are removed. None, and nothing is removed, where
        there is none."""
        self._settle()
        to = self.newest(say, before)
        for step in self.steps if to is not None else ():
            if step > to:
                self._delete(step)
        return to

    def _settle(self) -> None:
        """Waits for the save in progress, and removes what is no longer to be kept."""
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            self._failed(error)
        if self._saving is None:
            return
        step, _ = self._saving
        self.tell("saved", step, f"checkpoint of step {step}")
        self._saving, self._failures = None, 0
        steps = self.steps
        reached = [step for step in steps if step <= steps[-1] - self._reach]
        for step in steps[: -self._keep]:
            if step not in reached[-1:] and (not self._keep_every or step % self._keep_every):
                self._delete(step)

    def _delete(self, step: int) -> None:
        if is_first():
            gone = (self.folder / str(step)).rename(self.folder / f"{step}{_DELETING}")
            shutil.rmtree(gone, ignore_errors=True)

    def _complete(self) -> None:
        """What process 0 does in the background when all arrays are written, before Orbax renames the folder."""
        step, provenance = self._saving
        (folder,) = self.folder.glob(f"{step}{_UNFINISHED}*")
        (folder / _PROVENANCE).write_text(json.dumps(provenance.to_json()))
        seal(folder)

    def _failed(self, error: Exception) -> None:
        step, _ = self._saving
        self._saving = None
        self._failures += 1
        newest = max(self.steps, default=None)
        told = f"checkpoint of step {step} could not be written ({_reason(error)}); the newest one is " + (
            f"step {newest}" if newest is not None else "none"
        )
        for path in self.folder.glob(f"{step}{_UNFINISHED}*") if is_first() else ():
            shutil.rmtree(path, ignore_errors=True)
        if jax.process_count() > 1 or self._failures == _FAILURES_IN_ROW:
            raise InputError(f"{self.folder}: {told}; make room there, and run the same command again") from None
        self._writer = self._begin_writer()
        self.tell("save_failed", step, f"{told}; training goes on, and the next one is tried")


def _items(state: TrainState) -> dict[str, Tree]:
    """What Orbax writes side by side: whoever only predicts reads two of them."""
    items = dict(zip(_ITEMS, (
        state.parameters, state.calibration, state.optimiser, {"step": state.step, **state.health._asdict()},
        state.average,
    ), strict=True))  # fmt: skip
    return items if state.average else {name: tree for name, tree in items.items() if name != "average"}


def _reason(error: Exception) -> str:
    """The cause, in a few words: TensorStore tells a page."""
    text = " ".join(str(error).split())
    for known in ("No space left on device", "Disk quota exceeded", "File too large", "Permission denied",
                  "Read-only file system"):  # fmt: skip
        if known in text:
            return known
    return f"{type(error).__name__}: {text[:200]}"


def find_checkpoint(path: Path | str, say: Callable[[str], None] = print) -> tuple[Path, int]:
    """(workdir, step) of the newest whole checkpoint of a workdir; raises `InputError` where there is none."""
    path = Path(path)
    if not path.is_dir():
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 1)
            if path.parent.is_dir()
            else []
        )
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"{path}: no such workdir{hint}")
    if not (path / "checkpoints").is_dir():
        raise InputError(f"{path}: holds no checkpoints; expected the workdir of 'tario train' or 'tario run'")
    with Checkpoints(path) as checkpoints:
        step = checkpoints.newest(say)
    if step is None:
        raise InputError(f"{path}/checkpoints: holds no whole checkpoint; train until the first one is saved")
    return path, step
