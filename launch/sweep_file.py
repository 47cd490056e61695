"""A sweep's file: named configs of one cohort, and the hardware that each is to have."""

import dataclasses
import fnmatch
import importlib.util
import re
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from launch.hardware import Hardware, is_hardware
from tario_jax.config import Config, InputError, SourceConfig
from tario_jax.config_files import load_config, override


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Configs by name, of one cohort."""

    file: Path
    configs: dict[str, Config]
    hardware: dict[str, Hardware | None]  # by name; None: what is there
    arguments: dict[str, str]  # by name, what follows FILE in --config=FILE…
    assignments: dict[str, str] = dataclasses.field(default_factory=dict)  # of --config.a.b=value, for all runs

    @property
    def source(self) -> SourceConfig:
        return next(iter(self.configs.values())).source

    @property
    def name(self) -> str:
        return self.file.stem

    def of(self, runs: Collection[str]) -> "Sweep":
        """With these runs of it alone."""
        configs = {run: config for run, config in self.configs.items() if run in runs}
        return dataclasses.replace(self, configs=configs, hardware={run: self.hardware[run] for run in configs})

    def config_words(self, name: str) -> list[str]:
        """As a job of tario takes the config of a run."""
        changed = [f"--config.{field}={value}" for field, value in self.assignments.items()]
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
        raise InputError(f"{file}: no such file; expected a sweep, as those in configs/sweeps/, or a config")
    module = _module(file) if file.suffix == ".py" else None
    if module is None or not (hasattr(module, "get_sweep") or hasattr(module, "get_config")):
        raise InputError(f"{file}: has neither get_sweep nor get_config; expected a function that returns configs by "
                         "name, as in configs/sweeps/, or one config, as in configs/")  # fmt: skip
    if hasattr(module, "get_sweep") and not argument:
        configs = {run: override(config, assignments) for run, config in module.get_sweep().items()}
        arguments = {run: f":{run}" for run in configs}
    else:
        config = load_config(spec, assignments)
        run = argument if hasattr(module, "get_sweep") else config.name
        configs = {run: config}
        arguments = {run: f":{argument}" if argument else ""}
    kept = {run: config for run, config in configs.items() if any(fnmatch.fnmatch(run, one) for one in only.split(","))}
    if not kept:
        raise InputError(f"--only={only}: no run of {file} is called so; it has {', '.join(configs)}")
    _check(file, kept)
    return Sweep(file, kept, _hardware(file, module, argument, topology, kept), arguments, assignments)


def _hardware(file: Path, module: ModuleType, argument: str, topology: str | None,
              configs: dict[str, Config]) -> dict[str, Hardware | None]:  # fmt: skip
    """Of each run: --topology, or what the file says, or what a single config is set up for, as FILE.py:v5e:16x16."""
    if topology is not None:
        return dict.fromkeys(configs, Hardware.of(topology))
    if not hasattr(module, "get_topologies"):
        return dict.fromkeys(configs, Hardware.of(argument) if is_hardware(argument) else None)
    lent = module.get_topologies()
    unknown = sorted(set(lent) - set(module.get_sweep()))
    if unknown:
        raise InputError(f"{file}: get_topologies names {unknown[0]!r}, which is no run of it")
    return {run: Hardware.of(lent[run]) if run in lent else None for run in configs}


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tario_sweep_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:  # whatever a user's Python raises
        raise InputError(f"{file}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    return module


def _check(file: Path, configs: dict[str, Config]) -> None:
    first = next(iter(configs))
    for name, config in configs.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise InputError(f"{file}: a run is called {name!r}; expected letters, digits, and _ . - between them: it "
                             "names a folder")  # fmt: skip
        if config.source != configs[first].source:
            raise InputError(f"{file}: run {name!r} has another source than {first!r}; expected one cohort for all "
                             "(patients are varied by split.train_patients)")  # fmt: skip
