"""Whether a run's training step fits its chips: compiled ahead of time, once for each program, and kept.

Runs that differ in patients, seed, steps or learning rate share a program. A verdict is kept in <folder>/<key>.json,
and counts as long as the code that makes the program, jax and libtpu are the same.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tario_jax
from launch.hardware import Hardware
from tario_jax.config import Config, InputError
from tario_jax.config_files import to_dict
from tario_jax.parallel.topology import why_not
from tario_jax.whole_file import write_whole

_OF_PROGRAM = ("data", "model", "mesh")
_OF_TRAINING = ("learns", "accumulate", "ema_decay", "spike_deviations")
_NOT_OF_PROGRAM = ("seed", "prefetch", "workers")  # of data
_CODE = ("config.py", "panel.py", "model", "ops", "parallel", "tokens", "train", "he_features")
_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Of a program on its chips."""

    fits: bool
    memory_bytes: float | None  # of a chip, as the compiler counts; None where it did not say
    chip_memory_bytes: float
    why: str = ""  # where it does not compile

    def __str__(self) -> str:
        if self.why:
            return self.why
        share = self.memory_bytes / self.chip_memory_bytes
        return f"{'fits' if self.fits else 'does not fit'}, {self.memory_bytes / _GIB:.1f} GiB ({share:.0%})"


def verdict_key(config: Config, hardware: Hardware, genes: int) -> str:
    """The same for runs of the same program."""
    values = to_dict(config)
    told = {group: values[group] for group in _OF_PROGRAM}
    told["data"] = {name: value for name, value in told["data"].items() if name not in _NOT_OF_PROGRAM}
    told["train"] = {name: values["train"][name] for name in _OF_TRAINING}
    told |= {"optimiser": values["optim"]["optimiser"], "z_loss": values["optim"]["z_loss"],
             "trained": values["start"]["trained"]}  # fmt: skip
    told |= {"hardware": str(hardware), "genes": genes, "code": _code(), "versions": _versions()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]


@functools.cache
def _code() -> str:
    """A checksum of what makes the program."""
    root, found = Path(tario_jax.__file__).parent, hashlib.sha256()
    for name in _CODE:
        for path in sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]:
            found.update(path.read_bytes())
    return found.hexdigest()


def _versions() -> list[str]:
    names = ("jax", "jaxlib", "flax", "optax", "libtpu")
    return [f"{name} {_version(name)}" for name in names]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


class Verdicts:
    """Those of a folder."""

    def __init__(self, folder: Path, genes: int):
        self._folder, self._genes = folder, genes

    def known(self, config: Config, hardware: Hardware | None) -> Verdict | None:
        if hardware is None or hardware.is_gpu:
            return None
        try:
            values = json.loads(self._path(config, hardware).read_text())
            return Verdict(**values["verdict"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def find(self, runs: dict[str, tuple[Config, Hardware | None]], say: Callable[[str], None]) -> str:
        """Compiles what is not known yet, a program after the other; returns why one is still not known, or nothing."""
        missing: dict[str, tuple[Config, Hardware, list[str]]] = {}
        for name, (config, hardware) in runs.items():
            if config.train.learns == "he":  # 'tario compile' compiles models of counts
                say(f"verdicts: {name} learns from H&E alone, of which there is none on memory")
            elif hardware is not None and not hardware.is_gpu and self.known(config, hardware) is None:
                key = verdict_key(config, hardware, self._genes)
                missing.setdefault(key, (config, hardware, []))[2].append(name)
        if not missing:
            return ""
        if refused := why_not():
            return refused
        say(f"verdicts: {len(missing)} programs to compile, minutes each for large models; what is found is kept in "
            f"{self._folder}")  # fmt: skip
        unknown = ""
        for number, (config, hardware, names) in enumerate(missing.values(), 1):
            verdict = self._compile(config, hardware)
            if isinstance(verdict, str):
                unknown = f"{names[0]}: {verdict}"
            say(f"verdicts: {number}/{len(missing)}  {hardware}, {names[0]}"
                f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {verdict}")  # fmt: skip
        return unknown

    def _compile(self, config: Config, hardware: Hardware) -> Verdict | str:
        """The verdict, which is kept; or why there is none."""
        from tario_jax.train.aot import CompilerKilled, NoPod, compile_apart

        memory = hardware.chip.memory_bytes
        try:
            found = compile_apart(config, hardware.topology, hardware.slices, genes=self._genes, say=_silent)
        except (CompilerKilled, NoPod) as error:  # they say nothing of memory: it is asked again
            return str(error)
        except InputError as error:  # of the mesh, or the compiler crashes on this program
            verdict, found = Verdict(False, None, memory, str(error)), {}
        else:
            verdict = Verdict(found["fits"], found["memory_bytes"]["total"], found["chip_memory_bytes"])
        self._folder.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any] = {"verdict": dataclasses.asdict(verdict), "hardware": str(hardware),
                                "config": to_dict(config), "table": found.get("table")}  # fmt: skip
        write_whole(self._path(config, hardware), json.dumps(told, indent=1))
        return verdict

    def _path(self, config: Config, hardware: Hardware) -> Path:
        return self._folder / f"{verdict_key(config, hardware, self._genes)}.json"


def _silent(line: str) -> None:
    pass
