"""What a chip can do, of its vendor's page: the numbers that bounds are drawn from.

cloud.google.com/tpu/docs/v5e, v5p, v6e ("System architecture"): peak bf16 FLOP/s, bandwidth of the memory, and that of
the inter-chip interconnect by chip, here divided by its links (4, 6 and 4). Exponentials are on no
such page: assumed is one a lane and cycle, of 1,024 lanes a core (two cores of a v5p) at 1.5 GHz (v5e) and 1.75 GHz.
"""

import dataclasses
from typing import NamedTuple

from tario_jax.config import InputError

_GIB = 1 << 30


class Rates(NamedTuple):
    """What a device does in a second: a chip's peaks, or what was measured of the one that is here."""

    matmul_flops: float
    memory_bytes: float  # read and written together
    exponentials: float
    overlap: bool = True  # whether the three go on side by side


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip."""

    name: str
    rates: Rates  # of products in bfloat16
    memory_bytes: float  # that a program may take, as the compiler counts it
    link_bytes_per_second: float  # of a link to one of an axis's two neighbours, one way
    largest_grid: tuple[int, ...] = ()  # of a slice, its sides in ascending order


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", Rates(197e12, 819e9, 1.5e12), 15.75 * _GIB, 50e9, (16, 16)),
        Chip("v5p", Rates(459e12, 2765e9, 3.6e12), 95.74 * _GIB, 100e9, (16, 20, 28)),
        Chip("v6e", Rates(918e12, 1600e9, 1.8e12), 31.25 * _GIB, 100e9, (16, 16)),
    )
}
SLICE_LINK_BYTES_PER_SECOND = 6.25e9
"""Between slices, by chip and one way: a host of four chips has 200 Gbit/s to the data centre's network."""


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as v5p:4x8x8. Raises `InputError` for one that is not known."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise InputError(f"--topology={topology}: no such chip; expected one of {', '.join(CHIPS)}, then its grid, as "
                         "in v5p:4x8x8")  # fmt: skip
    return CHIPS[name]


_DEVICE_KINDS = {
    "TPU v5 lite": CHIPS["v5e"], "TPU v5e": CHIPS["v5e"], "TPU v5": CHIPS["v5p"], "TPU v5p": CHIPS["v5p"],
    "TPU v6 lite": CHIPS["v6e"], "TPU v6e": CHIPS["v6e"],
    # nvidia.com, data sheets of the SXM boards: dense bf16, memory, and NVLink's 900 GB/s: 18 links of 25 GB/s each
    # way. Through the switch an axis has them all: a GPU receives 450 GB/s, 225 GB/s from each of two neighbours.
    # Exponentials: FlashAttention-3 (Shah et al. 2024), 3.9 T a second of special functions
    "NVIDIA H100 80GB HBM3": Chip("H100", Rates(989e12, 3.35e12, 3.9e12), 79.6 * _GIB, 225e9),
    "NVIDIA H200": Chip("H200", Rates(989e12, 4.8e12, 3.9e12), 140.4 * _GIB, 225e9),
}  # fmt: skip


def chip_of_device(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None where its peaks are not known here, as those of a CPU."""
    return _DEVICE_KINDS.get(device_kind)
