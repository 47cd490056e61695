"""Reads a bundle of tario-jax and predicts with it. Stands alone: it needs jax, flatbuffers, numpy and safetensors.

    bundle = Bundle("bundle")
    rates = bundle.predict(he, xy_um, side_um)      # [windows, squares, genes], expected detections in each square

he: uint8 [B, Y, X, 3], windows of the side and µm per px that `bundle.signature["window"]` names; xy_um: float32
[B, N, 2], centres of squares in µm from the window's upper left corner, y downwards; side_um: float32 [B, N].
`bundle.genes` are the symbols of the last axis. Any number of windows and of squares; each pair of them compiles once.
"""

import hashlib
import json
from pathlib import Path

import jax
import jaxlib
import numpy as np
from jax import export
from safetensors import safe_open

FORMAT_VERSION = 1  # of bundles


class BundleError(ValueError):
    """What is wrong with a bundle, and how to mend it, in one line."""


class Bundle:
    """A bundle whose every file is as it was written, and which gives its golden output here."""

    def __init__(self, folder: str | Path, *, check: bool = True):
        """check: also run the golden input. Raises `BundleError` for a bundle that is damaged or cannot run here."""
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / "bundle.json").read_text())
            files = {name: (size, sha256) for name, (size, sha256) in about["files"].items()}
            version = about["format_version"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{self.folder}: is no finished bundle ({type(error).__name__} in bundle.json); export "
                              "it again") from None  # fmt: skip
        if version != FORMAT_VERSION:
            raise BundleError(f"{self.folder}: is of format {version}, and this loader reads {FORMAT_VERSION}; take "
                              "the loader.py that lies in it")  # fmt: skip
        for name, (size, sha256) in files.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size or _sha256(path) != sha256:
                raise BundleError(f"{path}: differs from what was exported; copy the bundle again")
        self.signature = json.loads((self.folder / "signature.json").read_text())
        self.banner: str = self.signature["banner"]
        self._refuse_old_jax()
        self.genes = tuple(row.split("\t")[0] for row in (self.folder / "panel.tsv").read_text().splitlines()[1:])
        found = hashlib.sha256("\n".join(self.genes).encode()).hexdigest()[:16]
        if found != self.signature["panel_hash"]:
            raise BundleError(f"{self.folder}/panel.tsv: is panel {found}, and the weights are of panel "
                              f"{self.signature['panel_hash']}; copy the bundle again")  # fmt: skip
        self.parameters = {}
        for name in sorted(name for name in files if name.endswith(".safetensors")):
            with safe_open(self.folder / name, framework="flax") as tensors:
                self.parameters |= {name: tensors.get_tensor(name) for name in tensors.keys()}
        exported = export.deserialize(bytearray((self.folder / "model.stablehlo").read_bytes()))
        if jax.default_backend() not in (platforms := [{"cuda": "gpu"}.get(name, name) for name in exported.platforms]):
            raise BundleError(f"{self.folder}: was exported for {', '.join(platforms)}, not {jax.default_backend()}")
        self.call = jax.jit(exported.call)
        if check and "golden" in self.signature:
            self.check_golden()

    def predict(self, he, xy_um, side_um) -> np.ndarray:
        """Rates [B, N, G], float32. Raises `ValueError` for squares larger than the bundle pools."""
        he, xy_um, side_um = np.asarray(he), np.asarray(xy_um, np.float32), np.asarray(side_um, np.float32)
        if not (side_um <= (largest := self.signature["inputs"][2]["largest"])).all():
            raise ValueError(f"side_um is up to {side_um.max():g} µm; expected at most {largest:g} (tario export)")
        return np.asarray(self.call(self.parameters, he, xy_um, side_um))

    def check_golden(self) -> float:
        """The largest relative difference of the golden output. Raises `BundleError` where it is too large."""
        with np.load(self.folder / "golden.npz") as golden:
            found = self.predict(golden["he"], golden["xy_um"], golden["side_um"])
            off = float(np.max(np.abs(found - golden["rates"]) / golden["rates"]))
        if not off <= self.signature["golden"]["tolerance"]:
            raise BundleError(f"{self.folder}: its golden input gives rates that are off by {off:.1e} here, more than "
                              f"{self.signature['golden']['tolerance']:.0e}; update jax, or export again")  # fmt: skip
        return off

    def _refuse_old_jax(self) -> None:
        with_, version = self.signature["jax"], self.signature["jax"]["calling_convention"]
        if _numbers(jaxlib.__version__) < _numbers(with_["jaxlib"]):
            raise BundleError(f"{self.folder}: was exported with jaxlib {with_['jaxlib']}, and this is "
                              f"{jaxlib.__version__}; pip install 'jax>={with_['jaxlib']}'")  # fmt: skip
        if version < (least := export.minimum_supported_calling_convention_version):
            raise BundleError(f"{self.folder}: is of calling convention {version}, and jax {jax.__version__} reads "
                              f"{least} and newer; export it again")  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
