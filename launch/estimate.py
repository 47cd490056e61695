"""What a run takes by the count: parameters, tokens, FLOPs, the shortest possible step, hours and money."""

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Any

from launch.hardware import Hardware
from tario_jax.config import Config, InputError
from tario_jax.config_files import to_dict
from tario_jax.model.build import build_of, model_sizes
from tario_jax.model.flops import step_flops
from tario_jax.parallel.mesh import check_rows, mesh_elsewhere
from tario_jax.tokens.deal import check_tiles
from tario_jax.train.aot import pod_layout
from tario_jax.train.roofline import estimate, written_links

PRICES = Path(__file__).with_name("prices.toml")


@dataclasses.dataclass(frozen=True)
class Prices:
    share_of_bound: float
    dollars_per_chip_hour: dict[str, float]

    @classmethod
    def read(cls, file: Path) -> "Prices":
        """Raises `InputError` where the file is none, or says something else."""
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"--prices={file}: {error.strerror}; expected a file as launch/prices.toml") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"--prices={file}: {error}; expected TOML, as launch/prices.toml") from None
        expected = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) ^ expected):
            raise InputError(f"--prices={file}: {'has' if unknown[0] in values else 'lacks'} {unknown[0]!r}; expected "
                             f"{' and '.join(sorted(expected))}")  # fmt: skip
        share, dollars = values["share_of_bound"], values["dollars_per_chip_hour"]
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise InputError(f"--prices={file}: share_of_bound is {share!r}; expected a share, above 0 and at most 1")
        for kind, price in dollars.items() if isinstance(dollars, dict) else [("dollars_per_chip_hour", dollars)]:
            if type(price) not in (int, float) or not 0 <= price < math.inf:
                raise InputError(f"--prices={file}: {kind} is {price!r}; expected dollars of a chip and hour")
        if not isinstance(dollars, dict):
            raise InputError(f"--prices={file}: dollars_per_chip_hour is {dollars!r}; expected a table of chips")
        return cls(float(share), {kind: float(price) for kind, price in dollars.items()})


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A run's training. None: not known without chips, or without their price."""

    trunk_parameters: int
    gene_parameters: int
    tokens: float  # read and predicted: H&E, contents and queries
    flops: float
    chips: int | None = None
    bound_by: str | None = None
    shortest_hours: float | None = None  # where nothing waits
    hours: float | None = None  # of that, at the share that is attained
    dollars: float | None = None
    refusal: str | None = None  # why it cannot run on its hardware as it is configured

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Estimates:
    """Estimates of runs; what is the same program with the same hardware is counted once."""

    def __init__(self, prices: Prices, genes: int):
        self._prices, self._genes, self._known = prices, genes, {}

    def of(self, config: Config, hardware: Hardware | None) -> Estimate:
        groups = (config.data, config.model, config.mesh, config.train, config.start)
        key = json.dumps([*map(to_dict, groups), str(hardware)], sort_keys=True)
        if key not in self._known:
            self._known[key] = self._count(config, hardware)
        return self._known[key]

    def _count(self, config: Config, hardware: Hardware | None) -> Estimate:
        layout = pod_layout(config, self._genes)
        row = layout.tokens(contents=config.writes_contents)
        steps = config.train.steps
        sizes = model_sizes(config, self._genes, layout.frozen_features)
        of_all = Estimate(sizes.trunk, sizes.gene_tables, float(steps * config.data.rows * row),
                          steps * step_flops(config, layout).total)  # fmt: skip
        if hardware is None:
            return of_all
        try:
            slices = 1 if hardware.is_gpu else hardware.slices  # what hosts of GPUs send each other is not counted
            mesh = mesh_elsewhere(config.mesh, hardware.chip, hardware.chips, slices)
            check_rows(mesh, config.data.rows, config.train.accumulate)
            check_tiles(layout.tiles, mesh.shape["context"])
            build_of(config, self._genes, layout.frozen_features).shardings(mesh)  # raises where one does not divide
            links = written_links(config, layout, self._genes, mesh, hardware.chip, slices)
            line = estimate(config, layout, self._genes, mesh, hardware.chip.rates, links)
        except InputError as refused:
            return dataclasses.replace(of_all, chips=hardware.chips, refusal=str(refused))
        if config.train.learns != "counts" or config.start.trained != "all":  # the bound is of a whole step
            return dataclasses.replace(of_all, chips=hardware.chips)
        shortest = steps * line.seconds / 3600
        hours = shortest / self._prices.share_of_bound
        price = self._prices.dollars_per_chip_hour.get(hardware.kind)
        return dataclasses.replace(
            of_all, chips=hardware.chips, bound_by=line.bound_by, shortest_hours=shortest, hours=hours,
            dollars=None if price is None else price * hours * hardware.chips,
        )  # fmt: skip
