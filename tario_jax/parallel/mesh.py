"""The mesh: replica, fsdp, context, tensor."""

import functools
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tario_jax.config import BATCH_AXES, MESH_AXES, InputError, MeshConfig
from tario_jax.tokens.batch import Batch, has_tiles


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of the run; −1 takes what the other axes leave.

    Raises `InputError` where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if -1 in sizes or math.prod(sizes) != len(devices):
        stated = ", ".join(f"{axis}={getattr(config, axis)}" for axis in MESH_AXES)
        raise InputError(f"--config.mesh: {stated} does not multiply to {len(devices)} devices")
    return Mesh(np.array(devices).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def traced_on(mesh: Mesh, function):
    """`function` for `jax.jit`, with `mesh` as the ambient one: what spreads its own work over devices looks there."""

    @functools.wraps(function)
    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def batch_shardings(mesh: Mesh) -> Batch:
    """Of each array of a batch: rows over replica × fsdp, tiles over context, the rest whole on each device."""
    return Batch(*(
        NamedSharding(mesh, PartitionSpec(BATCH_AXES, "context") if has_tiles(name) else PartitionSpec(BATCH_AXES))
        for name in Batch._fields
    ))  # fmt: skip


def check_rows(mesh: Mesh, rows: int) -> None:
    """Raises `InputError` where the rows of a batch cannot be split over replica × fsdp."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if rows % parts:
        raise InputError(f"--config.data.rows={rows}: expected a multiple of replica × fsdp = {parts}")


def local_rows(mesh: Mesh, rows: int) -> range:
    """Rows of the global batch that the devices of this process hold."""
    return _local(NamedSharding(mesh, PartitionSpec(BATCH_AXES)), rows, "rows of the batch")


def local_tiles(mesh: Mesh, tiles: int) -> range:
    """Tiles of a row, as they are dealt, that the devices of this process hold."""
    return _local(NamedSharding(mesh, PartitionSpec("context")), tiles, "tiles of a row")


def _local(sharding: NamedSharding, size: int, what: str) -> range:
    indices = sharding.addressable_devices_indices_map((size,))
    spans = {index[0].indices(size)[:2] for index in indices.values()}
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    if sum(stop - start for start, stop in spans) != last - first:
        raise InputError(f"--config.mesh: this process's {what} do not lie side by side; reorder the mesh")
    return range(first, last)
