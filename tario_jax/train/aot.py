"""A training step compiled for a pod that is not here: what it holds, what it sends, how fast it can be at best."""

import concurrent.futures.process
import contextlib
import dataclasses
import math
import multiprocessing
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from tario_jax.config import Config, InputError
from tario_jax.he_features.catalogue import CARDS
from tario_jax.model.build import Built, build_of, model_sizes
from tario_jax.model.flops import step_flops
from tario_jax.parallel.chips import Chip, chip_of
from tario_jax.parallel.collectives import Collective, collectives, received_by_axis
from tario_jax.parallel.mesh import check_rows, make_mesh
from tario_jax.parallel.topology import topology_devices
from tario_jax.tokens.batch import Layout, make_layout, square_bins_per_tile
from tario_jax.tokens.deal import check_tiles
from tario_jax.train.aot_table import table
from tario_jax.train.frozen import trained_parameters
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.roofline import estimate, link_seconds
from tario_jax.train.stability import Stability
from tario_jax.train.state import abstract_batch, abstract_state, make_train_step

ENTRIES_PER_UM2 = 0.6  # (bin, gene, count) of dense tissue, 770 a bin of 36 µm; only where no corpus says better


@dataclasses.dataclass(frozen=True)
class Pod:
    """Chips to compile for."""

    topology: str
    slices: int
    chip: Chip
    devices: list[jax.Device]

    @classmethod
    def of(cls, topology: str, slices: int = 1) -> "Pod":
        """`slices` pods of `topology`, as v5p:4x8x8. Raises `InputError` for one that does not exist."""
        return cls(topology, slices, chip_of(topology), topology_devices(topology, slices))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip."""

    arguments: int  # state and batch
    outputs: int  # beyond what the old state's memory holds
    temporaries: int
    program: int
    host: int  # of its host, where remat sends to it; no part of the total

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config on a mesh, checked: what a step of it takes."""

    config: Config
    genes: int
    mesh: Mesh
    layout: Layout
    built: Built
    arrays: tuple  # abstract state and batch

    @classmethod
    def of(cls, config: Config, genes: int, devices: list[jax.Device]) -> "Plan":
        """Raises `InputError` where the mesh does not fit the devices, the batch or the model."""
        config.refuse_he_alone("tario compile")
        mesh = make_mesh(config.mesh, devices)
        check_rows(mesh, config.data.rows, config.train.accumulate)
        layout = pod_layout(config, genes)
        check_tiles(layout.tiles, mesh.shape["context"])
        built = build_of(config, genes, layout.frozen_features)
        batch = abstract_batch(config.data.rows, layout, mesh)
        trained = trained_parameters(built, config.start)
        optimiser = make_optimiser(config.optim, config.train.steps, built, trained)
        state = abstract_state(built, optimiser, mesh, Stability.of(config))
        return cls(config, genes, mesh, layout, built, (state, batch))

    @property
    def state_bytes(self) -> int:
        """Of one chip."""
        return _bytes_a_chip(self.arrays[0])

    def lowered(self):
        trained = trained_parameters(self.built, self.config.start)
        optimiser = make_optimiser(self.config.optim, self.config.train.steps, self.built, trained)
        step = make_train_step(self.built, optimiser, self.mesh, self.config.train.accumulate,
                               Stability.of(self.config), trained)  # fmt: skip
        return step.lower(*self.arrays)


def compile_step(config: Config, pod: Pod, *, genes: int = 18963, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Compiles the training step of `config` for `pod`; returns what was found, with a "table".

    The batch's capacity for counts is `config.data.count_capacity`, or else that of dense tissue. Raises `InputError`
    for a mesh that does not fit the pod, the batch or the model, and `OutOfMemory`.
    """
    plan = Plan.of(config, genes, pod.devices)
    sizes, layout, mesh = model_sizes(config, genes, plan.layout.frozen_features), plan.layout, plan.mesh
    say(f"compile: {sizes}, for {mesh.size} chips of {pod.chip.name}: minutes for a large model")
    began = time.monotonic()
    lowered = plan.lowered()
    asked, loops, memory = None, 0, Memory(0, 0, 0, 0, 0)
    found: list[Collective] = []
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        asked = _asked_bytes(str(error), _bytes_a_chip(plan.arrays))
        if asked is None:
            raise
    else:
        counted = program.memory_analysis()
        memory = Memory(counted.argument_size_in_bytes, counted.output_size_in_bytes - counted.alias_size_in_bytes,
                        counted.temp_size_in_bytes, counted.generated_code_size_in_bytes,
                        counted.host_temp_size_in_bytes)  # fmt: skip
        found, loops = collectives(program.as_text(), dict(mesh.shape), pod.slices)
    flops = step_flops(config, layout)
    links = link_seconds(received_by_axis(found), pod.chip, pod.slices)
    line = estimate(config, layout, genes, mesh, pod.chip.rates, links)
    # of a program that there is not, nobody knows what it sends
    unknown = {} if asked is None else {"mfu": None, "mfu_without_overlap": None}
    bins = layout.tiles * layout.bins_per_tile
    result: dict[str, Any] = {
        "topology": pod.topology, "slices": pod.slices, "chips": mesh.size, "mesh": dict(mesh.shape),
        "rows": config.data.rows, "queries_a_row": bins, "head_dim": config.model.head_dim,
        "tokens_a_row": layout.tiles * layout.patches_per_tile + (0 if config.data.one_shot else bins),
        "window_um": config.data.window_um, "remat": config.model.remat,
        "count_capacity": layout.count_capacity, "parameters": dataclasses.asdict(sizes),
        "memory_bytes": dataclasses.asdict(memory) | {"total": memory.total if asked is None else asked},
        "state_bytes": plan.state_bytes, "chip_memory_bytes": pod.chip.memory_bytes, "compiled": asked is None,
        # the compiler lets some pass whose parts are more than the chip has: no money on those
        "fits": asked is None and memory.total <= pod.chip.memory_bytes,
        "collectives": [dataclasses.asdict(one) for one in found], "loops_of_unknown_length": loops,
        "flops": dataclasses.asdict(flops) | {"total": flops.total},
        "roofline": line.to_dict() | unknown, "compile_seconds": time.monotonic() - began,
    }  # fmt: skip
    return result | {"table": table(result)}


class CompilerCrash(InputError):
    """The compiler ended the process that it ran in: it would again."""


class CompilerKilled(CompilerCrash):
    """Something else ended the compiler, as a rule a machine without the memory for it: another one may do."""


class NoPod(InputError):
    """The compiler knows no such pod, or cannot be used on this machine: of the program nothing is known."""


class OutOfMemory(InputError):
    """The compiler finds no room for a program, and does not say how much of a chip's memory it asked for: a smaller
    part of the work on a chip may have room."""


def compile_apart(config: Config, topology: str, slices: int, *, genes: int = 18963,
                  say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """`compile_step` in a process of its own, which alone a crash of the compiler ends.

    Raises what `compile_step` does, `CompilerCrash`, and `NoPod`. `say` is one that another process can import.
    """
    others = set(multiprocessing.active_children())
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        compiled = pool.submit(_compile_here, config, topology, slices, genes, say)
        (process,) = set(multiprocessing.active_children()) - others
        with contextlib.suppress(concurrent.futures.process.BrokenProcessPool):
            return compiled.result()
    if process.exitcode == -signal.SIGKILL:
        raise CompilerKilled(f"--topology={topology}: the compiler was killed, as a rule for want of memory; try again "
                             "on a machine with more")  # fmt: skip
    raise CompilerCrash(f"--topology={topology}: libtpu's compiler crashes on this program, and said so above; try "
                        "another model.remat or mesh, or heads of 128")  # fmt: skip


def _compile_here(config: Config, topology: str, slices: int, genes: int, say) -> dict[str, Any]:
    try:
        pod = Pod.of(topology, slices)
    except InputError as error:
        raise NoPod(str(error)) from None
    return compile_step(config, pod, genes=genes, say=say)


def pod_layout(config: Config, genes: int) -> Layout:
    """Batch sizes of square bins, without a corpus."""
    data = config.data
    area_um2 = data.windows_per_row * data.window_um**2
    return make_layout(data, genes, bins_per_tile=square_bins_per_tile(data), largest_bin_um=data.largest_bin_um,
                       count_capacity=data.count_capacity
                       or math.ceil(ENTRIES_PER_UM2 * area_um2 * (1 + len(data.coarse_um))),
                       frozen_features=_features(data.frozen_encoder))  # fmt: skip


def _features(encoder: str) -> int:
    """Length of an encoder's stored features; 0 without one. Raises `InputError` where no card is known here."""
    if not encoder:
        return 0
    if encoder not in CARDS:
        raise InputError(f"data.frozen_encoder is {encoder!r}; 'tario compile', 'tario bench step' and launch read no "
                         "corpus, and know the catalogue's cards alone: expected one of "
                         f"{', '.join(CARDS)}, or none")  # fmt: skip
    return CARDS[encoder].features


def _asked_bytes(message: str, arguments: int) -> int | None:
    """Bytes of a chip's memory that a program would have taken, of the compiler's refusal; None where it refuses
    something else. Raises `OutOfMemory` where it is of another memory, as a kernel's, or does not tell them."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    text = " ".join(message.split())
    space = re.search(r"memory space (\w+)", text)
    if space and space[1] != "hbm":
        at = text.index(space[0])
        raise OutOfMemory(f"compile: the kernel does not fit {space[1]}: {text[at : at + 200]}")
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for words, more in ((r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", 0),
                        (r"HLO temporaries \(([\d.]+)([KMG])\)", arguments)):  # fmt: skip
        if used := re.search(words, text):
            return round(float(used[1]) * units[used[2]]) + more
    raise OutOfMemory(f"compile: out of memory: {text[:200]}")


def _bytes_a_chip(arrays) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays)
    )
