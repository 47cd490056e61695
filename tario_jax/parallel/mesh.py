"""The mesh: replica, fsdp, context, tensor."""

import functools
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tario_jax.config import BATCH_AXES, MESH_AXES, InputError, MeshConfig
from tario_jax.parallel.chips import CHIPS, Chip
from tario_jax.tokens.batch import Batch, has_tiles


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of the run; −1 takes what the other axes leave.

    On TPUs the axes are laid along the grid of chips; where there are several slices, `replica` crosses them, and no
    other axis does. Raises `InputError` where the sizes do not multiply to the number of devices, or `replica` not
    to that of the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(config, len(devices))
    placed = _on_grid(devices, sizes) if devices[0].platform == "tpu" else np.array(devices).reshape(sizes)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_elsewhere(config: MeshConfig, chip: Chip, chips: int, slices: int = 1) -> AbstractMesh:
    """The mesh of chips that are not here, for what is counted and not compiled. Raises `InputError` as `make_mesh`."""
    sizes = _sizes(config, chips)
    if chip in CHIPS.values():
        _check_slices(sizes[0], slices)
    device = AbstractDevice(chip.name, None, "tpu" if chip in CHIPS.values() else "gpu")
    return AbstractMesh(tuple(sizes), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES), abstract_device=device)


def _sizes(config: MeshConfig, devices: int) -> list[int]:
    """Of the axes, over so many devices."""
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
    if -1 in sizes or math.prod(sizes) != devices:
        stated = ", ".join(f"{axis}={getattr(config, axis)}" for axis in MESH_AXES)
        raise InputError(f"--config.mesh: {stated} does not multiply to {devices} devices")
    return sizes


def _check_slices(replica: int, slices: int) -> None:
    if replica % slices:
        raise InputError(f"--config.mesh: replica={replica} on {slices} slices; expected a multiple of them")


def _on_grid(devices: list[jax.Device], sizes: list[int]) -> np.ndarray:
    """Chips as an array of `sizes`, so that neighbours along an axis are neighbours on the grid where they can be."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    _check_slices(sizes[0], slices)
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    within = (sizes[0] // slices, *sizes[1:])
    return mesh_utils.create_hybrid_device_mesh(
        within, (slices, *[1] * (len(sizes) - 1)), devices, allow_split_physical_axes=True
    )


def traced_on(mesh: Mesh, function):
    """`function` for `jax.jit`, with `mesh` as the ambient one: what spreads its own work over devices looks there."""

    @functools.wraps(function)
    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


@functools.cache  # asked for at each step
def batch_shardings(mesh: Mesh) -> Batch:
    """Of each array of a batch: rows over replica × fsdp, tiles over context, the rest whole on each device."""
    return Batch(*(
        NamedSharding(mesh, PartitionSpec(BATCH_AXES, "context") if has_tiles(name) else PartitionSpec(BATCH_AXES))
        for name in Batch._fields
    ))  # fmt: skip


def check_rows(mesh: Mesh, rows: int, accumulate: int = 1) -> None:
    """Raises `InputError` where the rows of a batch cannot be split over replica × fsdp, and there into parts."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * accumulate
    if rows % parts:
        of = "replica × fsdp" + " × train.accumulate" * (accumulate > 1)
        raise InputError(f"--config.data.rows={rows}: expected a multiple of {of} = {parts}")


def check_host_memory(devices: list[jax.Device], remat: str) -> None:
    """Raises `InputError` where remat "offload" is asked of devices that cannot keep arrays in their host's memory."""
    if remat == "offload":
        kinds = {memory.kind for memory in devices[0].addressable_memories()}
        if "pinned_host" not in kinds:
            raise InputError(f"--config.model.remat=offload: {devices[0].device_kind} reaches no memory of its host "
                             f"(only {', '.join(sorted(kinds))}); expected full or save_attention")  # fmt: skip


def local_rows(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """Rows of the global batch that the devices of this process hold, in order.

    They need not lie side by side: on a grid of chips a host is a block of them, and the axes of the mesh cross it.
    """
    held = NamedSharding(mesh, PartitionSpec(BATCH_AXES)).addressable_devices_indices_map((rows,))
    return tuple(sorted({row for (span,) in held.values() for row in range(*span.indices(rows))}))


def of_all_processes(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """The array of the whole mesh of which this process has its `local_rows`, each of them whole."""
    shards = math.prod(sharding.mesh.shape[axis] for axis in BATCH_AXES)
    first_of = {shard: place for place, shard in enumerate(local_rows(sharding.mesh, shards))}
    rows = len(array) // len(first_of)  # of a shard

    def held(index: tuple[slice, ...]) -> np.ndarray:
        first = first_of[(index[0].start or 0) // rows] * rows
        return array[(slice(first, first + rows), *index[1:])]

    return jax.make_array_from_callback((rows * shards, *array.shape[1:]), sharding, held)
