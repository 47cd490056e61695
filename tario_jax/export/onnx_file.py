"""The function of a bundle as an ONNX model, for machines without jax (extra `onnx`: jax2onnx converts).

What a bundle's function takes is any number of windows and squares; jax2onnx (0.17) converts it for numbers that are
fixed alone, so there is a file for each pair. A file stands alone: the weights are in it, and what they are of.
"""

import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from tario_jax.config import InputError
from tario_jax.he_features.needed import imported

MOST_BYTES = 2_000_000_000  # of weights: a message of Protocol Buffers holds less than 2 GiB
INPUTS, OUTPUTS = ("he", "xy_um", "side_um"), ("rates",)


class OnnxSizes(NamedTuple):
    """What is fixed in a file."""

    windows: int
    squares: int  # of a window

    @classmethod
    def of(cls, text: str) -> "OnnxSizes":
        """Of "8x49". Raises `InputError` for what is no such pair."""
        windows, _, squares = text.partition("x")
        if not (windows.isdecimal() and squares.isdecimal() and int(windows) and int(squares)):
            raise InputError(f"--onnx={text}: expected windows x squares, such as 8x49, or several with commas")
        return cls(int(windows), int(squares))

    @property
    def file(self) -> str:
        return f"model_{self.windows}x{self.squares}.onnx"


def need_onnx() -> list[Any]:
    """onnx and jax2onnx. Raises `InputError` where something of the extra is not installed."""
    return [imported(name, "onnx", "--onnx") for name in ("onnx", "jax2onnx", "onnxruntime")][:2]


def write_onnx(path: Path, function, tensors: dict[str, jax.Array], given: dict[str, np.ndarray],
               signature: dict[str, Any], genes: tuple[str, ...]) -> None:  # fmt: skip
    """Converts `function(tensors, he, xy_um, side_um)` for inputs of the sizes of `given`, in that order.

    Raises `InputError` without the extra, and where there are more weights than a file holds.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > MOST_BYTES:
        raise InputError(f"--onnx: the weights are {size / 1e9:.1f} GB, and an ONNX file holds at most 2 GB; leave "
                         "--onnx out")  # fmt: skip
    onnx, jax2onnx = need_onnx()
    shapes = [jax.ShapeDtypeStruct(given[name].shape, given[name].dtype) for name in INPUTS]
    # from primitives, which are few: what jax2onnx has for jax.numpy knows less of types than jax.numpy does
    primitives = jaxpr_as_fun(jax.make_jaxpr(lambda *inputs: function(tensors, *inputs))(*shapes))
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # of shapes that it leaves out of loops
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of jax
        model = jax2onnx.to_onnx(lambda *inputs: primitives(*inputs)[0], shapes, model_name="tario",
                                 input_names=list(INPUTS), output_names=list(OUTPUTS))  # fmt: skip
    model.doc_string = " ".join(filter(None, ("Expected detections of genes in squares of H&E.", signature["banner"])))
    known = {name: str(signature[name]) for name in ("trained_on", "banner", "checkpoint", "panel_hash")}
    known |= {"um_per_px": f"{signature['window']['um_per_px']:g}", "genes": "\t".join(genes)}
    onnx.helper.set_model_props(model, known)
    onnx.save(model, path)


def onnx_rates(path: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    """What ONNX Runtime says of an input, on the CPU."""
    runtime = imported("onnxruntime", "onnx", "--onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # it warns of constants that it does not need
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(list(OUTPUTS), given)[0]
