"""A sweep's file: named configs of one cohort, and the hardware that each is to have."""

import dataclasses
import fnmatch
import importlib.util
import re
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from launch.hardware import Hardware, is_hardware
from tario_jax.config import Config, InputError, SourceConfig
from tario_jax.config_files import load_config, override

RESERVED = ("corpus", "scaling", "launch", "verdicts", "kept", "logs", "queues", "submit")
"""Names of what lies beside the runs, or of a backend's files: none of a run."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Configs by name, of one cohort."""

    file: Path
    configs: dict[str, Config]
    hardware: dict[str, Hardware | None]  # by name; None: what is there
    arguments: dict[str, str]  # by name, what follows FILE in --config=FILE…
    assignments: dict[str, str] = dataclasses.field(default_factory=dict)  # of --config.a.b=value, for all runs
    file_hardware: dict[str, Hardware | None] = dataclasses.field(default_factory=dict)  # of all runs of the file

    @property
    def source(self) -> SourceConfig:
        return next(iter(self.configs.values())).source

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def whole(self) -> dict[str, Hardware | None]:
        """Hardware of all runs of the file, also of those that were not asked for."""
        return self.file_hardware | self.hardware

    def of(self, runs: Collection[str]) -> "Sweep":
        """With these runs of it alone."""
        configs = {run: config for run, config in self.configs.items() if run in runs}
        return dataclasses.replace(self, configs=configs, hardware={run: self.hardware[run] for run in configs})

    def config_words(self, name: str, groups: Collection[str] | None = None) -> list[str]:
        """As a job of tario takes the config of a run. groups: that the job reads of it, None: all."""
        changed = [f"--config.{field}={value}" for field, value in self.assignments.items()
                   if groups is None or field.partition(".")[0] in groups]  # fmt: skip
        return [f"--config={self.file}{self.arguments[name]}", *changed]


def read_sweep(spec: str, only: str = "*", topology: str | None = None,
               assignments: dict[str, str] | None = None) -> Sweep:  # fmt: skip
    """The runs of FILE.py, or the one of FILE.py:ARGUMENT, where their names match `only` (patterns with commas).

    topology: the hardware of all of them; else what get_topologies() of the file says. Raises `InputError` where the
    file has no sweep and no config, none of its runs is called so, cohorts differ, or a topology does not exist.
    """
    name, _, argument = spec.partition(":")
    file, assignments = Path(name), assignments or {}
    if not file.is_file():
        raise InputError(
            f"{file}: {'is a folder' if file.is_dir() else 'no such file'}; expected a sweep, as those in "
            "configs/sweeps/, or a config"
        )
    module = _module(file) if file.suffix == ".py" else None
    if module is None or not (hasattr(module, "get_sweep") or hasattr(module, "get_config")):
        raise InputError(f"{file}: has neither get_sweep nor get_config; expected a function that returns configs by "
                         "name, as in configs/sweeps/, or one config, as in configs/")  # fmt: skip
    if hasattr(module, "get_sweep") and not argument:
        configs = {run: override(config, assignments) for run, config in _sweep_of(file, module).items()}
        arguments = {run: f":{run}" for run in configs}
    else:
        config = load_config(spec, assignments)
        run = argument if hasattr(module, "get_sweep") else config.name
        configs = {run: config}
        arguments = {run: f":{argument}" if argument else ""}
    _check(file, configs)
    patterns = [one.strip() for one in only.split(",")]
    for one in patterns:
        if not fnmatch.filter(configs, one):
            raise InputError(f"--only={only}: no run of {file} is called {one!r}; it has {', '.join(configs)}")
    kept = {run: config for run, config in configs.items() if any(fnmatch.fnmatch(run, one) for one in patterns)}
    hardware = _hardware(file, module, argument, topology, configs)
    if not hasattr(module, "get_config"):
        raise InputError(f"{file}: has get_sweep and no get_config, by which a job asks for its run; add get_config("
                         "name), which returns tario_jax.config_files.chosen(name, get_sweep())")  # fmt: skip
    return Sweep(file, kept, {run: hardware[run] for run in kept}, arguments, assignments, hardware)


def _sweep_of(file: Path, module: ModuleType) -> dict[str, Config]:
    found = _called(file, module.get_sweep)
    if not isinstance(found, dict) or not found or not all(isinstance(one, Config) for one in found.values()):
        told = f"a {type(found).__name__}" if not isinstance(found, dict) else "no run" if not found else "other values"
        raise InputError(f"{file}: get_sweep returned {told}; expected configs by name, as in configs/sweeps/")
    return found


def _hardware(file: Path, module: ModuleType, argument: str, topology: str | None,
              configs: dict[str, Config]) -> dict[str, Hardware | None]:  # fmt: skip
    """Of each run: --topology, or what the file says, or what a single config is set up for, as FILE.py:v5e:16x16."""
    if topology is not None:
        return dict.fromkeys(configs, Hardware.of(topology))
    if not hasattr(module, "get_topologies"):
        return dict.fromkeys(configs, Hardware.of(argument) if is_hardware(argument) else None)
    lent = _called(file, module.get_topologies)
    if not isinstance(lent, dict) or not all(isinstance(one, str) for one in lent.values()):
        raise InputError(f"{file}: get_topologies returned something else; expected topologies by run, as 'v5e:16x16'")
    unknown = sorted(map(str, set(lent) - set(configs)))
    if unknown and not argument:
        raise InputError(f"{file}: get_topologies names {unknown[0]!r}, which is no run of it")
    return {run: Hardware.of(lent[run]) if run in lent else None for run in configs}


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tario_sweep_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    _called(file, lambda: spec.loader.exec_module(module))
    return module


def _called(file: Path, function: Callable[[], Any]) -> Any:
    """What a user's Python returns, its mistakes in one line."""
    try:
        return function()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{file}: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _check(file: Path, configs: dict[str, Config]) -> None:
    first = next(iter(configs))
    for name, config in configs.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise InputError(f"{file}: a run is called {name!r}; expected letters, digits, and _ . - between them: it "
                             "names a folder")  # fmt: skip
        if name.lower() in RESERVED:
            raise InputError(f"{file}: a run is called {name!r}, as a folder or a file beside the runs is; call it "
                             "something else")  # fmt: skip
        if config.source != configs[first].source:
            raise InputError(f"{file}: run {name!r} has another source than {first!r}; expected one cohort for all "
                             "(patients are varied by split.train_patients)")  # fmt: skip
