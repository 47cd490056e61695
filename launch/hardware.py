"""What a run is given, and what those who lend it call it: chips, hosts, and the names of Cloud TPU and of GKE.

A topology counts chips: v5p:4x8x8 is a slice of 256, 2xv5p:4x8x8 two of them, 16xH100 sixteen GPUs. Names of clouds
count what they please: v5p-512 counts two cores a chip, v5litepod-256 and v6e-256 count chips. Facts:
cloud.google.com/tpu/docs (v5e, v5p, v6e: "Configurations"; "TPU software versions") and
cloud.google.com/kubernetes-engine/docs/concepts/tpus.
"""

import dataclasses
import math
import re

from tario_jax.config import InputError
from tario_jax.parallel.chips import CHIPS, Chip, chip_of_device

CHIPS_OF_HOST = 4
"""Of a TPU's host that is one of several, and of the whole grid 2x2."""
GPUS_OF_HOST = 8


@dataclasses.dataclass(frozen=True)
class _Tpu:
    """The names of one kind of TPU."""

    cloud: str  # before the number, in Cloud TPU's accelerator type
    counted_a_chip: int  # by that number
    gke: str  # value of the label cloud.google.com/gke-tpu-accelerator
    machine: str  # of a node of four chips
    runtime: str  # of a TPU VM


_TPUS = {
    "v5e": _Tpu("v5litepod", 1, "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", "v2-alpha-tpuv5-lite"),
    "v5p": _Tpu("v5p", 2, "tpu-v5p-slice", "ct5p-hightpu-4t", "v2-alpha-tpuv5"),
    "v6e": _Tpu("v6e", 1, "tpu-v6e-slice", "ct6e-standard-4t", "v2-alpha-tpuv6e"),
}
_FLAT_GRIDS = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_GRID_OF_NAME = {
    2 * math.prod(grid): grid
    for grid in ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16),
                 (8, 16, 16), (16, 16, 16), (16, 16, 24))
}  # fmt: skip
"""By the number in v5p-N the grid that it stands for; others have no such name."""
_GPUS = {"H100": ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb", "a3-highgpu-8g"),
         "H200": ("NVIDIA H200", "nvidia-h200-141gb", "a3-ultragpu-8g")}  # fmt: skip
"""By name: what jax calls the device, GKE's label cloud.google.com/gke-accelerator, and the machine of eight."""


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The chips of one run. A GPU's grid is the GPUs of a host, and its slices are hosts."""

    kind: str  # v5e, v5p, v6e, H100, H200
    grid: tuple[int, ...]
    slices: int = 1

    @classmethod
    def of(cls, text: str) -> "Hardware":
        """v5p:4x8x8, 2xv5p:4x8x8, 8xH100. Raises `InputError` for what nobody lends."""
        tpu = re.fullmatch(r"(?:([1-9]\d*)x)?(v\d\w*):(\d+(?:x\d+)+)", text)
        gpu = re.fullmatch(r"([1-9]\d*)x([A-Z]\w*)", text)
        if gpu and gpu[2] in _GPUS:
            return cls._of_gpus(text, int(gpu[1]), gpu[2])
        if not tpu or tpu[2] not in _TPUS:
            told = _grid_meant(text)
            raise InputError(f"--topology={text}: not known; expected a chip and its grid, as v5e:16x16, v5p:4x8x8 or "
                             f"2xv5p:4x8x8 (two slices), or GPUs, as 8xH100{told}")  # fmt: skip
        found = cls(tpu[2], tuple(int(side) for side in tpu[3].split("x")), int(tpu[1] or 1))
        found._check_grid(text)
        if found.slices > 1 and found.hosts_of_slice == 1:
            raise InputError(f"--topology={text}: slices of one host each; several slices are lent of several hosts")
        return found

    @classmethod
    def _of_gpus(cls, text: str, number: int, kind: str) -> "Hardware":
        if number > GPUS_OF_HOST and number % GPUS_OF_HOST:
            raise InputError(f"--topology={text}: hosts have {GPUS_OF_HOST} {kind}; expected 1 to {GPUS_OF_HOST}, or a "
                             "multiple of them")  # fmt: skip
        return cls(kind, (min(number, GPUS_OF_HOST),), max(1, number // GPUS_OF_HOST))

    def _check_grid(self, text: str) -> None:
        if self.kind != "v5p":
            if self.grid not in _FLAT_GRIDS:
                raise InputError(f"--topology={text}: no slice of {self.kind} has this grid; expected one of "
                                 + ", ".join("x".join(map(str, grid)) for grid in _FLAT_GRIDS))  # fmt: skip
            return
        largest = self.chip.largest_grid
        sides = tuple(sorted(self.grid))
        small = sides in ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))
        whole = len(sides) == 3 and all(
            side % 4 == 0 and side <= most for side, most in zip(sides, largest, strict=True)
        )
        written = self.grid == (2, 2, 1) or self.grid == sides
        if not (small or whole) or not written:
            raise InputError(
                f"--topology={text}: no slice of v5p has this grid; expected 2x2x1, 2x2x2, 2x2x4, 2x4x4, or multiples "
                f"of 4 from the least to the greatest, up to {'x'.join(map(str, largest))}"
            )

    def __str__(self) -> str:
        if self.is_gpu:
            return f"{self.chips}x{self.kind}"
        return f"{self.slices}x{self.topology}" if self.slices > 1 else self.topology

    @property
    def is_gpu(self) -> bool:
        return self.kind in _GPUS

    @property
    def topology(self) -> str:
        """Of one slice, as 'tario compile' takes it."""
        return f"{self.kind}:{self.grid_text}"

    @property
    def grid_text(self) -> str:
        return "x".join(map(str, self.grid))

    @property
    def chip(self) -> Chip:
        return chip_of_device(_GPUS[self.kind][0]) if self.is_gpu else CHIPS[self.kind]

    @property
    def chips_of_slice(self) -> int:
        return math.prod(self.grid)

    @property
    def chips(self) -> int:
        return self.slices * self.chips_of_slice

    @property
    def chips_of_host(self) -> int:
        return self.grid[0] if self.is_gpu else CHIPS_OF_HOST

    @property
    def hosts_of_slice(self) -> int:
        return self.chips_of_slice // self.chips_of_host

    @property
    def hosts(self) -> int:
        """Each runs one process."""
        return self.slices * self.hosts_of_slice

    # names

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's, of a slice: v5p-512 for v5p:4x8x8. Raises `InputError` where it has none."""
        if self.is_gpu:
            raise InputError(f"{self}: Cloud TPU has no GPUs; take --backend=gke or --backend=slurm")
        tpu, number = _TPUS[self.kind], self.chips_of_slice * _TPUS[self.kind].counted_a_chip
        if self.kind == "v5p" and _GRID_OF_NAME.get(number) != self.grid:
            means = "x".join(map(str, _GRID_OF_NAME[number])) if number in _GRID_OF_NAME else "nothing"
            raise InputError(f"{self}: Cloud TPU's v5p-{number} stands for {means}; it has no other name")
        return f"{tpu.cloud}-{number}"

    @property
    def accelerator_flags(self) -> list[str]:
        """By which `gcloud compute tpus queued-resources create` is asked for a slice."""
        try:
            return [f"--accelerator-type={self.accelerator_type}"]
        except InputError:
            if self.is_gpu:
                raise
            return [f"--type={self.kind}", f"--topology={self.grid_text}"]

    @property
    def vms(self) -> int:
        """Of Cloud TPU, one process each: eight chips of v5e or v6e are one VM there, and two nodes of GKE."""
        per_slice = 1 if self.kind != "v5p" and self.grid == (2, 4) else self.hosts_of_slice
        return self.slices * per_slice

    @property
    def runtime(self) -> str:
        """Cloud TPU's software version of the VMs."""
        return _TPUS[self.kind].runtime

    @property
    def node_labels(self) -> dict[str, str]:
        """Of the nodes of GKE that have it."""
        if self.is_gpu:
            return {"cloud.google.com/gke-accelerator": _GPUS[self.kind][1]}
        return {"cloud.google.com/gke-tpu-accelerator": _TPUS[self.kind].gke,
                "cloud.google.com/gke-tpu-topology": self.grid_text}  # fmt: skip

    @property
    def resource(self) -> str:
        """As Kubernetes counts chips."""
        return "nvidia.com/gpu" if self.is_gpu else "google.com/tpu"

    @property
    def machine_type(self) -> str:
        """Of a node of GKE."""
        return _GPUS[self.kind][2] if self.is_gpu else _TPUS[self.kind].machine


def is_hardware(text: str) -> bool:
    """Whether it is a topology that exists."""
    try:
        Hardware.of(text)
    except InputError:
        return False
    return True


def of_accelerator_type(name: str) -> Hardware:
    """The slice that Cloud TPU calls so: v5p-512 is v5p:4x8x8. Raises `InputError` for a name that it does not have."""
    prefix, _, number = name.rpartition("-")
    kind = next((kind for kind, tpu in _TPUS.items() if tpu.cloud == prefix), None)
    if kind is not None and number.isdecimal():
        grids = _GRID_OF_NAME.values() if kind == "v5p" else _FLAT_GRIDS
        for grid in grids:
            found = Hardware(kind, grid)
            if found.accelerator_type == name:
                return found
    raise InputError(
        f"{name}: Cloud TPU has no such accelerator type; expected one as v5litepod-256, v5p-512 or v6e-64"
    )


def _grid_meant(text: str) -> str:
    """Where a cloud's name was given: the topology that it means."""
    try:
        return f"; {text} is {of_accelerator_type(text)}"
    except InputError:
        return ""
