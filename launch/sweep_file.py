"""A sweep's file, and what of it is done already: the state lies in the runs' own folders."""

import dataclasses
import fnmatch
import importlib.util
import json
from pathlib import Path

from tario_jax.config import Config, InputError, SourceConfig


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Configs by name, of one cohort."""

    file: Path
    configs: dict[str, Config]

    @property
    def source(self) -> SourceConfig:
        return next(iter(self.configs.values())).source


def read_sweep(file: Path, only: str = "*") -> Sweep:
    """Raises `InputError` where the file has no sweep, none of its runs is called so, or cohorts differ."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected a sweep, as those in configs/sweeps/")
    spec = importlib.util.spec_from_file_location(f"tario_sweep_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_sweep"):
        raise InputError(f"{file}: has no get_sweep; expected a function that returns configs by name; a single run is "
                         f"started by 'tario run --config={file}'")  # fmt: skip
    configs = {name: config for name, config in module.get_sweep().items() if fnmatch.fnmatch(name, only)}
    if not configs:
        raise InputError(f"--only={only}: no run of {file} is called so; it has {', '.join(module.get_sweep())}")
    sweep = Sweep(file, configs)
    for name, config in configs.items():
        if config.source != sweep.source:
            raise InputError(f"{file}: run {name!r} has another source than {next(iter(configs))!r}; expected one "
                             "cohort for all (patients are varied by split.train_patients)")  # fmt: skip
    return sweep


def is_trained(workdir: Path, config: Config) -> bool:
    try:
        return json.loads((workdir / "done.json").read_text())["step"] >= config.train.steps
    except (OSError, ValueError, KeyError):
        return False


def is_evaluated(workdir: Path, config: Config) -> bool:
    """Whether the scores are there that are newer than the end of training, at every side of bins."""
    folders = [workdir, *(workdir / f"read_{read_um:g}um" for read_um in config.evaluate.read_um)]
    try:
        done = (workdir / "done.json").stat().st_mtime
        return all((folder / "report.json").stat().st_mtime >= done for folder in folders)
    except OSError:
        return False
