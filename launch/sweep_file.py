"""A sweep's file, and what of it is done already: the state lies in the runs' own folders."""

import dataclasses
import fnmatch
import importlib.util
import json
from pathlib import Path

from tario_jax.config import Config, InputError, SourceConfig
from tario_jax.config_files import from_dict, to_dict
from tario_jax.evaluate import score_file
from tario_jax.train.provenance import deciding_fields
from tario_jax.train.seal import checkpoint_id


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
    """Whether the run is done, and with this config: one that was changed is trained, or refused by 'tario train'."""
    found = _read(workdir / "config.json"), _read(workdir / "done.json")
    if None in found or found[1].get("step") != config.train.steps:
        return False
    return deciding_fields(from_dict(found[0])) == deciding_fields(config)


def is_evaluated(workdir: Path, config: Config) -> bool:
    """Whether reports are there of its newest checkpoint, with these settings, at every side of bins, and scores that
    can be read."""
    step = (_read(workdir / "done.json") or {}).get("step")
    checkpoint = checkpoint_id(workdir, step)
    settings = json.loads(json.dumps(to_dict(config.evaluate)))
    for folder in (workdir, *(workdir / f"read_{read_um:g}um" for read_um in config.evaluate.read_um)):
        report = _read(folder / "report.json") or {}
        if report.get("settings") != settings or report["provenance"]["checkpoint"] != checkpoint:
            return False
        if not score_file.is_current(folder / score_file.FILE):
            return False
    return True


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
