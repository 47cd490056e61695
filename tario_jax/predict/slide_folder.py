"""The folder of a slide's maps while it is written: who may begin in it, go on in it, and what is left of the work.

`asked.json` says what decides the maps, from the beginning to the end; `work` and `steps` hold what is computed
meanwhile. All of them go when the maps are sealed.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tario_jax.config import InputError
from tario_jax.predict.gene_validation import FILE as VALIDATION
from tario_jax.predict.gene_validation import GeneValidation
from tario_jax.predict.map_store import FILE, MapStore
from tario_jax.whole_file import write_whole

_ASKED = "asked.json"


class SlideFolder:
    """A folder that one prediction may be written into, by several processes."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        """identity: what decides the maps: pixels, model, and what was asked."""
        self.path, self.identity = path, identity
        self.work, self.steps = path / "work", path / "steps"

    @property
    def is_ended(self) -> bool:
        return (self.path / FILE).exists()

    def begin(self, validation: GeneValidation | None, say: Callable[[str], None]) -> MapStore | None:
        """Makes the folder, or goes on in it: None; or the maps, where they are there. Raises `InputError` where it
        holds another prediction."""
        if (done := self._done_already(validation, say)) is not None:
            return done
        out, asked = self.path, self.path / _ASKED
        # a process that begins at the same time, or was killed then, leaves the file that was to be renamed
        others = [one for one in out.iterdir() if not one.name.startswith(f".{_ASKED}.")] if out.exists() else []
        if others and not asked.exists():
            if (done := self._done_already(validation, say)) is not None:  # another process ended it meanwhile
                return done
            raise InputError(f"{out}: is there already, and holds no gene maps; give another --out")
        if asked.exists():
            self._refuse_another(asked)
            return None
        out.mkdir(parents=True, exist_ok=True)
        write_whole(asked, json.dumps(self.identity, indent=1))
        return None

    @contextlib.contextmanager
    def forgotten_if_refused(self) -> Iterator[None]:
        """What is refused before anything is computed leaves no folder: asked otherwise, it may be begun there."""
        try:
            yield
        except InputError:
            if self.path.exists() and [one.name for one in self.path.iterdir()] == [_ASKED]:
                shutil.rmtree(self.path)
            raise

    def clear(self) -> None:
        """Removes all but the maps."""
        for place in (self.work, self.steps):
            shutil.rmtree(place, ignore_errors=True)
        (self.path / _ASKED).unlink(missing_ok=True)

    def _done_already(self, validation: GeneValidation | None, say: Callable[[str], None]) -> MapStore | None:
        """The maps that are there, with what is known of their genes by now; None where there are none. Raises
        `InputError` where they are of something else."""
        if not self.is_ended:
            return None
        store, out = MapStore(self.path), self.path
        if store.about["identity"] != self.identity:
            raise InputError(f"{out}: holds maps of {store.about['section']} already, asked otherwise; give another "
                             "--out, or remove it")  # fmt: skip
        self.clear()  # what is left, if it was killed between the seal and this
        path = out / VALIDATION
        if validation is not None and not (path.exists() and path.read_bytes() == validation.to_bytes()):
            validation.write(path)
            say(f"{out}: is done already; what was found of its genes on held-out patients since is written")
        else:
            say(f"{out}: is done already")
        return store

    def _refuse_another(self, asked: Path) -> None:
        try:
            before = json.loads(asked.read_text())
        except ValueError:
            raise InputError(f"{asked}: is damaged; remove {self.path} and predict again") from None
        differs = [name for name in self.identity if before.get(name) != self.identity[name]]
        if differs:
            name = differs[0]
            raise InputError(f"{self.path}: a prediction was begun there with {name} {before.get(name)}, and this has "
                             f"{self.identity[name]}; give another --out, or remove it")  # fmt: skip
