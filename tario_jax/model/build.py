"""A model as a pure function of arrays: built abstractly, initialised on a mesh, counted."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from tario_jax.config import Config, ModelConfig
from tario_jax.model.declare import Calibration
from tario_jax.model.hidden_he import HiddenHE
from tario_jax.model.model import Tario
from tario_jax.panel import padded_genes
from tario_jax.parallel.rules import count, state_shardings

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Built:
    """A module split once. `merge` makes it callable again inside a jitted function."""

    graph: nnx.GraphDef
    parameters: nnx.State  # abstract
    calibration: nnx.State  # abstract
    _make: Any

    def initialise(self, seed: int, mesh: Mesh) -> tuple[Tree, Tree]:
        """Parameters and calibration as nested dicts of arrays, each made where the mesh wants it."""
        shardings = tuple(
            nnx.to_pure_dict(state_shardings(state, mesh)) for state in (self.parameters, self.calibration)
        )

        @functools.partial(jax.jit, out_shardings=shardings)
        def make(key):
            _, parameters, calibration = nnx.split(self._make(nnx.Rngs(key)), nnx.Param, Calibration)
            return nnx.to_pure_dict(parameters), nnx.to_pure_dict(calibration)

        return make(jax.random.key(seed))

    def merge(self, parameters: Tree, calibration: Tree) -> Tario | HiddenHE:
        def filled(abstract: nnx.State, values: Tree) -> nnx.State:
            leaves = dict(nnx.traversals.flatten_mapping(values))
            return nnx.map_state(lambda path, variable: variable.replace(leaves[path]), abstract)

        return nnx.merge(self.graph, filled(self.parameters, parameters), filled(self.calibration, calibration))

    def shardings(self, mesh: Mesh) -> tuple[Tree, Tree]:
        return tuple(nnx.to_pure_dict(state_shardings(state, mesh)) for state in (self.parameters, self.calibration))

    def by_axes(self, choose: Callable[[tuple[str, ...]], Any]) -> Tree:
        """`choose(logical axes)` of every parameter, as nested dicts."""
        return nnx.to_pure_dict(
            nnx.map_state(lambda _, variable: variable.replace(choose(variable.axes)), self.parameters)
        )

    def rates(self) -> Tree:
        """What multiplies Adam's learning rate of every parameter (model/width.py), as nested dicts of floats."""
        return nnx.to_pure_dict(nnx.map_state(lambda _, variable: variable.replace(variable.rate), self.parameters))

    def abstract(self) -> tuple[Tree, Tree]:
        return nnx.to_pure_dict(self.parameters), nnx.to_pure_dict(self.calibration)


def build(config: ModelConfig, genes: int, patch_px: int, *, content: bool, frozen: int = 0,
          learns: str = "counts", only_um: float | None = None) -> Built:  # fmt: skip
    """The model for a panel of `genes`, without allocating it. frozen: length of stored features of H&E patches;
    learns: as in `TrainConfig`, of H&E alone it has no genes; only_um: of a model that is read, the side of all bins
    that it saw, None where they were of several, or are not known."""
    padded = padded_genes(genes)

    def make(rngs: nnx.Rngs) -> Tario | HiddenHE:
        if learns == "he":
            return HiddenHE(config, patch_px, rngs=rngs, frozen=frozen)
        return Tario(config, padded, patch_px, content=content, rngs=rngs, frozen=frozen, only_um=only_um)

    graph, parameters, calibration = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, Calibration)
    return Built(graph, parameters, calibration, make)


def build_of(config: Config, genes: int, frozen: int = 0, only_um: float | None = None) -> Built:
    """The model that a run of this config trains; only_um: as of `build`."""
    return build(config.model, genes, config.data.patch_px, content=not config.data.one_shot, frozen=frozen,
                 learns=config.train.learns, only_um=only_um)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of parameters: the trunk, and the gene tables apart (they grow with the panel)."""

    trunk: int
    gene_tables: int

    def __str__(self) -> str:
        return f"trunk {self.trunk / 1e6:,.2f}M, gene tables {self.gene_tables / 1e6:,.2f}M parameters"


def model_sizes(config: Config, genes: int, frozen: int = 0) -> Sizes:
    """Sizes of a config's model for a panel of `genes`, from its abstract parameters."""
    built = build_of(config, genes, frozen)
    tables = trunk = 0
    for _, variable in nnx.to_flat_state(built.parameters):
        if {"genes", "gene_bias"} & set(variable.axes):
            tables += count(variable)
        else:
            trunk += count(variable)
    return Sizes(trunk, tables)
