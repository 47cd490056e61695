"""How long a step takes at least: of what each part of it computes and moves, and of what devices send each other.

On an accelerator the units of a chip work side by side, and links beside them: a part takes as long as the slowest of
its products, exponentials and memory traffic, and a step as long as its parts together or its slowest axis of links,
whichever is longer. XLA on a CPU runs one loop or product after the other: there the three are added.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from tario_jax.config import MESH_AXES, Config
from tario_jax.model.build import model_sizes
from tario_jax.model.decoder import choose_attention, compute_dtype
from tario_jax.model.flops import step_flops
from tario_jax.model.work import Machine, Part, device_links, device_work
from tario_jax.ops.attention.tpu import BLOCK
from tario_jax.ops.ranks import ambient_platform
from tario_jax.parallel.chips import SLICE_LINK_BYTES_PER_SECOND, Chip, Rates
from tario_jax.parallel.mesh import traced_on
from tario_jax.tokens.batch import Layout

KINDS = ("products", "exponentials", "memory")


@dataclasses.dataclass(frozen=True)
class PartTime:
    """Seconds that a part takes at least."""

    name: str
    products: float
    exponentials: float
    memory: float
    overlap: bool

    @property
    def seconds(self) -> float:
        return (max if self.overlap else sum)((self.products, self.exponentials, self.memory))

    @property
    def by(self) -> str:
        """What most of it is."""
        return max(KINDS, key=lambda kind: getattr(self, kind))


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Of one device and step."""

    parts: tuple[PartTime, ...]
    links: dict[str, float]  # seconds by axis of the mesh
    counted: float  # seconds that the counted FLOPs alone take at the peak

    @property
    def computing(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def seconds(self) -> float:
        return max(self.computing, *self.links.values())

    @property
    def bound_by(self) -> str:
        """An axis of the mesh, or else what most of the computing waits for."""
        axis = max(self.links, key=self.links.get)
        if self.links[axis] > self.computing:
            return axis
        return max(KINDS, key=lambda kind: sum(part.seconds for part in self.parts if part.by == kind))

    @property
    def mfu(self) -> float:
        return self.counted / self.seconds

    @property
    def mfu_without_overlap(self) -> float:
        """Where nothing that is sent is hidden behind what is computed."""
        return self.counted / (self.computing + sum(self.links.values()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        parts = {part.name: dataclasses.asdict(part) | {"seconds": part.seconds} for part in self.parts}
        for part in parts.values():
            del part["name"], part["overlap"]
        return {"parts": parts, "links": self.links, "counted_seconds": self.counted,
                "computing_seconds": self.computing, "seconds": self.seconds, "bound_by": self.bound_by,
                "mfu": self.mfu, "mfu_without_overlap": self.mfu_without_overlap}  # fmt: skip


def roofline(parts: Sequence[Part], rates: Rates, link_seconds: Mapping[str, float], counted_flops: float) -> Roofline:
    """The step of a device. counted_flops: its share of those that MFU is told of."""
    times = tuple(
        PartTime(part.name, part.flops / rates.matmul_flops, part.exponentials / rates.exponentials,
                 part.bytes / rates.memory_bytes, rates.overlap) for part in parts
    )  # fmt: skip
    return Roofline(times, dict(link_seconds), counted_flops / rates.matmul_flops)


def estimate(config: Config, layout: Layout, genes: int, mesh: Mesh, rates: Rates,
             links: Mapping[str, float]) -> Roofline:  # fmt: skip
    """The step of `config` on a device of `mesh`. links: seconds by axis, of a compiled program or `written_links`."""
    sizes = model_sizes(config, genes, layout.frozen_features)
    parts = device_work(config, layout, mesh.shape, _machine(config, layout, mesh), sizes.trunk + sizes.gene_tables)
    return roofline(parts, rates, links, step_flops(config, layout).total / mesh.size)


def written_links(config: Config, layout: Layout, genes: int, mesh: Mesh, chip: Chip, slices: int) -> dict[str, float]:
    """Seconds by axis of what the program sends as it is written, before a compiler has seen it."""
    sizes = model_sizes(config, genes, layout.frozen_features)
    machine = _machine(config, layout, mesh)
    return link_seconds(
        device_links(config, layout, mesh.shape, machine, sizes.trunk + sizes.gene_tables), chip, slices
    )


def link_seconds(received_bytes: Mapping[str, float], chip: Chip, slices: int) -> dict[str, float]:
    """Seconds that a chip's links take for what it receives by axis of the mesh.

    An axis within a slice has the two directions of one link of its own; `replica` crosses slices where there are some.
    """
    rates = {axis: SLICE_LINK_BYTES_PER_SECOND if axis == "replica" and slices > 1 else 2 * chip.link_bytes_per_second
             for axis in MESH_AXES}  # fmt: skip
    return {axis: received_bytes.get(axis, 0.0) / rates[axis] for axis in MESH_AXES}


def _machine(config: Config, layout: Layout, mesh: Mesh) -> Machine:
    bins = layout.tiles * layout.bins_per_tile
    seen = layout.tiles * layout.patches_per_tile + (0 if config.data.one_shot else bins)

    def chosen() -> Machine:
        plan = choose_attention(config.model, config.data.rows, seen, bins).plan
        kernel = plan is not None and plan.inner.strategy == "pallas"
        return Machine(compute_dtype(config.model).itemsize, BLOCK if kernel else 0, config.train.accumulate,
                       ambient_platform() != "cpu")  # fmt: skip

    return traced_on(mesh, chosen)()
