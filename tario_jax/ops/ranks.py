"""The ambient mesh (`jax.set_mesh`) for an operation: which axes split something, and how to run on the parts."""

import dataclasses
import math

import jax
from jax import lax
from jax.sharding import PartitionSpec

from tario_jax.config import MESH_AXES, InputError


def ambient_platform() -> str:
    """Of the devices of the ambient mesh, which need not be here, or else the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The axes of `config.MESH_AXES` that have more than one device. Without any (or without a mesh): plain code."""

    sizes: tuple[tuple[str, int], ...]

    @classmethod
    def ambient(cls, keep: str = "") -> "Ranks":
        """keep: an axis that counts, if the mesh has it, even with one device.

        Inside a caller's own `jax.shard_map`, axes that it maps over do not count: what is given here is one part.
        """
        mesh = jax.sharding.get_abstract_mesh()
        sizes = {axis: size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes}
        return cls(
            tuple((axis, sizes[axis]) for axis in MESH_AXES if sizes.get(axis, 1) > 1 or axis in sizes and axis == keep)
        )

    def present(self, *axes: str) -> tuple[str, ...]:
        """Those of `axes` that split something."""
        return tuple(axis for axis, _ in self.sizes if axis in axes)

    def count(self, *axes: str) -> int:
        """Parts that these axes cut something into."""
        return math.prod(devices for axis, devices in self.sizes if axis in axes)

    def part(self, size: int, what: str, *axes: str) -> int:
        """The share of `size` that one device has. Raises `InputError` where it does not divide."""
        parts = self.count(*axes)
        if size % parts:
            raise InputError(f"--config.mesh: {size} {what} do not divide over {' × '.join(axes)} = {parts}; "
                             "expected a multiple")  # fmt: skip
        return size // parts

    def spec(self, *dimensions: str | tuple[str, ...] | None) -> PartitionSpec:
        """By dimension the mesh axes that it lies over, without those that split nothing."""
        named = [(axes,) if isinstance(axes, str) else axes or () for axes in dimensions]
        return PartitionSpec(*[self.present(*axes) or None for axes in named])

    def run(self, local, in_specs, out_specs):
        """`local` on each device's part of its arguments; `local` itself where there is one device.

        Nobody tracks which outputs are the same on several devices: `local` sums what `out_specs` leaves whole.
        """
        return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False) if self.sizes else local

    # --- within `local`

    def index(self, axis: str) -> jax.Array | int:
        return lax.axis_index(axis) if self.present(axis) else 0

    def sum(self, x, *axes: str):
        """Over all devices of these axes. x: an array, or a tree of them."""
        axes = self.present(*axes)
        return lax.psum(x, axes) if axes else x

    def gather(self, x: jax.Array, axis: str, dimension: int) -> jax.Array:
        """The parts of all devices of `axis`, side by side along `dimension`."""
        return lax.all_gather(x, axis, axis=dimension, tiled=True) if self.present(axis) else x

    def sum_scattered(self, x: jax.Array, axis: str, dimension: int) -> jax.Array:
        """The sum over the devices of `axis`, of which each keeps its part of `dimension`."""
        return lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True) if self.present(axis) else x
