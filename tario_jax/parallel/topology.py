"""Pods that are not here: their chips as jax devices to compile for.

The compiler is that of libtpu (`pip install -e '.[tpu]'`); no TPU is needed. A compiled program cannot be run here.
"""

import fnmatch
import importlib.metadata
import os
import re
import warnings

import jax

from tario_jax.config import InputError
from tario_jax.parallel.chips import chip_of

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
               "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}  # fmt: skip
"""To be set before jax starts: it is not to look for a TPU, nor libtpu for the cloud's description of one. Without the
last two libtpu prints that it found none; what they say plays no part in compiling for a named topology."""


def topology_devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """The chips of a pod, or of several (`slices`) of them. topology: chip and grid, as v5p:4x8x8, which is 256 chips.

    Raises `InputError` for a topology that does not exist, and where libtpu is missing or of another version than jax
    asks for.
    """
    chip = chip_of(topology)
    if not re.fullmatch(r"\w+:\d+(x\d+){1,2}", topology):
        raise InputError(f"--topology={topology}: expected a chip and its grid, as v5e:16x16 or v5p:4x8x8; names of "
                         "clouds count cores or hosts, a grid counts chips")  # fmt: skip
    sides = sorted(int(side) for side in topology.partition(":")[2].split("x"))
    if len(sides) != len(chip.largest_grid) or any(a > b for a, b in zip(sides, chip.largest_grid, strict=True)):
        largest = "x".join(map(str, chip.largest_grid))
        raise InputError(f"--topology={topology}: no slice of {chip.name} has this grid; the largest is {largest}")
    refused = why_not()
    if refused:
        raise InputError(f"--topology={topology}: {refused}")
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name != "JAX_PLATFORMS"})
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own: it finds no TPU on this machine
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # whatever libtpu raises
        told = " ".join(str(error).split())[:200]
        raise InputError(f"--topology={topology}: libtpu knows no such pod ({told}); expected a grid of whole hosts, "
                         "as v5e:16x16 or v5p:4x8x8") from None  # fmt: skip
    return list(found.devices)


def why_not() -> str | None:
    """Why libtpu cannot be used here. Another version than jax asks for compiles, but its programs may not print."""
    asked = filter(None, (re.match(r"libtpu==([\d.*]+)", each) for each in importlib.metadata.requires("jax")))
    wanted = next(asked)[1]
    try:
        installed = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return f"libtpu {wanted} is not installed; pip install 'tario-jax[tpu]'"
    if not fnmatch.fnmatch(installed, wanted):
        return f"libtpu is {installed}, jax asks for {wanted}; pip install 'tario-jax[tpu]'"
    return None
