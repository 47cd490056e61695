"""`tario export`: writes a bundle from a checkpoint.

    model.stablehlo      the exported function: tensors by name, windows of H&E and squares in, rates out; for cpu, cuda
                         and tpu; any number of windows and squares
    params.safetensors   its tensors (several files and an index beyond 4 GB each)
    signature.json       inputs and outputs: shapes, types, units; the window, the panel, jax and the checkpoint
    panel.tsv genes.tsv  the genes in order; what is known of each from held-out patients
    MODEL_CARD.md        what it is, what it was trained on, what it may be used for
    golden.npz           an input and its output, checked whenever the bundle is loaded
    model_8x49.onnx      where it was asked for: the same for ONNX Runtime, for 8 windows of 49 squares
    loader.py            reads all of this, without tario_jax
    bundle.json          size and SHA-256 of every file; written last

Weights are read from the checkpoint a part of an array at a time, so a model may be larger than the memory.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax.nnx import traversals
from jax import export as jax_export

from tario_jax.config import InputError
from tario_jax.export.card import genes_table, model_card
from tario_jax.export.forward import WindowShape, window_rates
from tario_jax.export.golden import golden_input
from tario_jax.export.loader import FORMAT_VERSION, Bundle
from tario_jax.export.onnx_file import OnnxSizes, need_onnx, onnx_rates, write_onnx
from tario_jax.export.stored import StoredLeaves
from tario_jax.export.tensor_file import write_tensors
from tario_jax.export.weights import KINDS, Leaf, leaves_of, tensors_of
from tario_jax.model.build import Built, build
from tario_jax.predict.gene_validation import FILE as VALIDATION
from tario_jax.predict.gene_validation import GeneValidation, read_gene_validation
from tario_jax.predict.maps import VIRTUAL_BANNER
from tario_jax.train.checkpoint import Checkpoints, find_checkpoint
from tario_jax.train.provenance import Provenance
from tario_jax.train.seal import checkpoint_id

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # of golden rates on another machine, by the type of arithmetic


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a bundle shall be. Raises `InputError` for what cannot be.

    weights: how they are stored, of `weights.KINDS`; compute: type of the arithmetic; largest_um: side of the largest
    squares that it predicts, 0: four times those of training; golden: whether an input with its output goes along,
    for which the model must fit the memory; onnx: the sizes that it is also written for as ONNX.
    """

    weights: str = "float32"
    compute: str = "float32"
    largest_um: float = 0.0
    golden: bool = True
    onnx: tuple[OnnxSizes, ...] = ()

    def __post_init__(self):
        for name, known in (("weights", KINDS), ("compute", tuple(TOLERANCE))):
            if getattr(self, name) not in known:
                raise InputError(f"--{name}={getattr(self, name)}: expected one of {', '.join(known)}")
        if self.largest_um < 0:
            raise InputError(f"--largest-um={self.largest_um:g}: expected a side in µm")
        if self.onnx and self.compute != "float32":
            raise InputError(f"--onnx with --compute={self.compute}: ONNX Runtime has no such arithmetic on a CPU; "
                             "leave --compute out")  # fmt: skip


def export_bundle(workdir: Path, out: Path, wanted: Wanted = Wanted(), say: Callable[[str], None] = print
                  ) -> dict[str, Any]:  # fmt: skip
    """Writes the newest whole checkpoint of a workdir as a bundle; returns its signature.

    Raises `InputError` where there is none, the folder is there already, or the model cannot be exported.
    """
    if out.exists():
        raise InputError(f"{out}: is there already; give another --out, or remove it")
    if wanted.onnx:
        need_onnx()
    workdir, step = find_checkpoint(workdir, say)
    with Checkpoints(workdir) as checkpoints:
        provenance = checkpoints.provenance(step)
    checkpoint = checkpoint_id(workdir, step)  # now: a run that still trains may remove it
    validation = _validation(workdir, checkpoint)
    of_model = Exported.of(provenance, wanted)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        signature = _write(partial, of_model, workdir, step, checkpoint, validation, say)
        partial.rename(out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)  # nobody reads it, and it may fill the disk
        if isinstance(error, OSError) and error.filename is None:  # as of a full disk
            raise InputError(f"{out}: {error.strerror or error}; nothing was exported") from None
        raise
    return signature


def _write(partial: Path, of_model: "Exported", workdir: Path, step: int, checkpoint: str,
           validation: GeneValidation | None, say: Callable[[str], None]) -> dict[str, Any]:  # fmt: skip
    """All files of a bundle, into an empty folder; returns its signature."""
    wanted, provenance = of_model.wanted, of_model.provenance
    say(f"export: the function of {len(of_model.leaves)} arrays, for {', '.join(PLATFORMS)}")
    exported = of_model.traced()
    (partial / "model.stablehlo").write_bytes(exported.serialize())
    folder = workdir / "checkpoints" / str(step)
    averaged = (folder / "average").is_dir()
    stored = {"": StoredLeaves((folder / ("average" if averaged else "parameters")).resolve()),
              "calibration.": StoredLeaves((folder / "calibration").resolve())}  # fmt: skip
    tensors = [tensor for leaf in of_model.leaves for tensor in
               tensors_of(leaf, wanted.weights, stored["calibration." if leaf.is_statistic else ""])]  # fmt: skip
    write_tensors(partial, "params", tensors, progress=_tenths(say))
    signature = of_model.signature(exported, checkpoint, workdir.resolve().name)
    shutil.copy(Path(__file__).with_name("loader.py"), partial)
    (partial / "panel.tsv").write_text(provenance.panel.to_text())
    (partial / "genes.tsv").write_text(genes_table(provenance.panel, validation))
    if wanted.golden:
        signature["golden"] = {"file": "golden.npz", "tolerance": TOLERANCE[wanted.compute]}
    card = model_card(provenance, signature, validation, None if validation is None else _report(workdir, validation))
    (partial / "MODEL_CARD.md").write_text(card)
    (partial / "signature.json").write_text(json.dumps(signature, indent=1))
    if wanted.golden:
        given = golden_input(of_model.shape, provenance)
        _seal(partial)
        rates = Bundle(partial, check=False).predict(*given.values())
        if not (np.isfinite(rates).all() and (rates > 0).all()):
            raise InputError(f"{workdir}: the model's rates are no numbers above 0; its training diverged")
        np.savez(partial / "golden.npz", **given, rates=rates)
    if wanted.onnx:
        _seal(partial)
        signature["onnx"] = _write_onnx(partial, of_model, Bundle(partial, check=False), say)
        (partial / "signature.json").write_text(json.dumps(signature, indent=1))
    _seal(partial)
    return signature


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model as the function that a bundle holds."""

    provenance: Provenance
    wanted: Wanted
    built: Built
    shape: WindowShape
    leaves: tuple[Leaf, ...]  # that the function reads

    @classmethod
    def of(cls, provenance: Provenance, wanted: Wanted) -> "Exported":
        config, genes = provenance.config, len(provenance.panel)
        if config.train.learns == "he":
            raise InputError("the checkpoint learnt from H&E alone (train.learns=he) and knows no gene; train counts "
                             "from it, and export that")  # fmt: skip
        if config.data.frozen_encoder:
            raise InputError(f"the model reads stored features of {config.data.frozen_encoder!r}, which a bundle has "
                             "not; predict with 'tario predict'")  # fmt: skip
        built = build(dataclasses.replace(config.model, compute_dtype=wanted.compute), genes, config.data.patch_px,
                      content=not config.data.one_shot, only_um=provenance.only_um)  # fmt: skip
        most = max(4 * provenance.bin_um, *trained_um(provenance))
        largest_um = wanted.largest_um or min(most, config.data.window_um)
        if largest_um > config.data.window_um:
            raise InputError(f"--largest-um={largest_um:g}: expected at most the window, {config.data.window_um:g} µm")
        least = max(provenance.bin_um, *trained_um(provenance))
        if wanted.largest_um and largest_um < least:
            raise InputError(f"--largest-um={largest_um:g}: expected at least the largest side that was trained, "
                             f"{least:g} µm")  # fmt: skip
        found = cls(provenance, wanted, built, WindowShape.of(config.data, genes, largest_um),
                    tuple(leaves_of(built).values()))  # fmt: skip
        kept = set(found.traced().module_kept_var_idx)
        names = sorted(found.tensors())
        read = {name for number, name in enumerate(names) if number in kept}
        return dataclasses.replace(found, leaves=tuple(leaf for leaf in found.leaves if leaf.name in read))

    def tensors(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What the function takes first, by name."""
        return {name: array for leaf in self.leaves for name, array in leaf.stored(self.wanted.weights).items()}

    def traced(self) -> jax_export.Exported:
        rows, squares = jax_export.symbolic_shape("windows, squares")
        side = self.shape.side_px
        given = (jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8),
                 jax.ShapeDtypeStruct((rows, squares, 2), jnp.float32),
                 jax.ShapeDtypeStruct((rows, squares), jnp.float32))  # fmt: skip
        # float32 products are no float32 on a GPU or a TPU unless it is asked for
        precise = "highest" if self.wanted.compute == "float32" else None
        with jax.default_matmul_precision(precise):
            return jax_export.export(jax.jit(self.rates), platforms=PLATFORMS)(self.tensors(), *given)

    def rates(self, tensors: dict[str, jax.Array], he, xy_um, side_um) -> jax.Array:
        values = {leaf.name: leaf.read(tensors) for leaf in self.leaves}
        # what this prediction does not read, such as what reads contents
        values |= {name: jnp.zeros(leaf.shape) for name, leaf in leaves_of(self.built).items() if name not in values}
        parts: dict[bool, dict[tuple, jax.Array]] = {False: {}, True: {}}
        for name, value in values.items():
            own = name.removeprefix("calibration.")
            parts[own != name][tuple(own.split("."))] = value
        trees = (traversals.unflatten_mapping(parts[is_statistic]) for is_statistic in (False, True))
        return window_rates(self.built.merge(*trees), self.shape, he, xy_um, side_um)

    def signature(self, exported: jax_export.Exported, checkpoint: str, run: str) -> dict[str, Any]:
        """Inputs and outputs, and what they are of."""
        provenance, data, side = self.provenance, self.provenance.config.data, self.shape.side_px
        largest_um = (self.shape.patches_across - 1) * self.shape.patch_um
        return {
            "format": "tario bundle", "format_version": FORMAT_VERSION,
            "trained_on": provenance.trained_on,
            "banner": banner(provenance), "starts": [_start(start) for start in provenance.starts],
            "run": run, "checkpoint": checkpoint, "code": provenance.code,
            "panel_hash": provenance.panel.hash, "genes": len(provenance.panel),
            "window": {"side_px": side, "um_per_px": data.he_um_per_px, "side_um": data.window_um},
            "inputs": [
                {"name": "he", "shape": ["windows", side, side, 3], "dtype": "uint8",
                 "unit": f"sRGB of the H&E at {data.he_um_per_px:g} µm per px, rows downwards; white is glass",
                 "normalisation": "none: the function takes pixels as they are scanned"},
                {"name": "xy_um", "shape": ["windows", "squares", 2], "dtype": "float32",
                 "unit": "µm from the window's upper left corner, x to the right, y downwards: centres of squares"},
                {"name": "side_um", "shape": ["windows", "squares"], "dtype": "float32", "unit": "µm, sides of squares",
                 "default": provenance.bin_um, "trained": list(trained_um(provenance)), "largest": largest_um},
            ],
            "outputs": [{"name": "rates", "shape": ["windows", "squares", len(provenance.panel)], "dtype": "float32",
                         "unit": "expected detections in the square, of the genes of panel.tsv in order"}],
            "weights": self.wanted.weights, "compute": self.wanted.compute,
            "parameters": {name: {"shape": list(of.shape), "dtype": np.dtype(of.dtype).name}
                           for name, of in sorted(self.tensors().items())},
            "jax": {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "platforms": list(exported.platforms),
                    "calling_convention": exported.calling_convention_version,
                    "reads_calling_conventions": [jax_export.minimum_supported_calling_convention_version,
                                                  jax_export.maximum_supported_calling_convention_version]},
        }  # fmt: skip


def trained_um(provenance: Provenance) -> tuple[float, ...]:
    """Sides of the squares that training drew; of spots alone, of the square of a spot's area."""
    trained = provenance.config.data.trained_bins_um
    return trained if provenance.bin_um in trained else (provenance.bin_um,)


def banner(provenance: Provenance) -> str:
    """What whoever sees a prediction must know; empty where there is nothing."""
    if provenance.trained_on == "virtual":
        return VIRTUAL_BANNER
    virtual = [start["run"] for start in provenance.starts if start["trained_on"] == "virtual"]
    return f"This model was pretrained on virtual tissue ({', '.join(virtual)})." if virtual else ""


def _write_onnx(folder: Path, of_model: Exported, bundle: Bundle, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A file for each of the sizes, held against the bundle; what the signature says of them."""
    told = []
    for sizes in of_model.wanted.onnx:
        say(f"export: {sizes.file}, a minute or more")
        given = golden_input(of_model.shape, of_model.provenance, *sizes)
        write_onnx(folder / sizes.file, of_model.rates, bundle.parameters, given, bundle.signature, bundle.genes)
        expected = bundle.predict(*given.values())
        off = float(np.max(np.abs(onnx_rates(folder / sizes.file, given) - expected) / expected))
        if not off <= TOLERANCE["float32"]:
            raise InputError(f"--onnx: {sizes.file} says other rates than the model in ONNX Runtime, off by {off:.1e}; "
                             "leave --onnx out, or try another version of jax2onnx")  # fmt: skip
        told.append({"file": sizes.file, **sizes._asdict(), "largest_relative_difference": off})
    return told


def _start(start: dict[str, Any]) -> dict[str, Any]:
    return {name: start[name] for name in ("run", "step", "trained_on", "corpus_seal", "panel_hash")}


def _seal(folder: Path) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != "bundle.json":
            with path.open("rb") as file:
                files[path.name] = [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    (folder / "bundle.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=1))


def _validation(workdir: Path, checkpoint: str) -> GeneValidation | None:
    """What was found of each gene, of this very checkpoint; None where nobody looked."""
    path = workdir / VALIDATION
    if not path.exists():
        return None
    found = read_gene_validation(path)
    return found if found.about["checkpoint"] == checkpoint else None


def _report(workdir: Path, validation: GeneValidation) -> dict[str, Any] | None:
    """The evaluation's report, where it is the one that the table of genes is of."""
    try:
        report = json.loads((workdir / "report.json").read_text())
    except (FileNotFoundError, ValueError):  # half of one is none
        report = {}
    of = report.get("provenance", {})
    same = all(of.get(name) == validation.about.get(name) for name in ("checkpoint", "corpus_seal"))
    return report if same and of else None


def _tenths(say: Callable[[str], None]) -> Callable[[int, int], None]:
    said = 0

    def progress(done: int, total: int) -> None:
        nonlocal said
        if total > 1 << 30 and done * 10 // total > said:
            said = done * 10 // total
            say(f"export: weights {done / 1e9:.1f} of {total / 1e9:.1f} GB")

    return progress
