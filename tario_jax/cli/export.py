"""tario export: a checkpoint as a bundle that needs no tario."""

import argparse
from pathlib import Path

from tario_jax.cli.options import above_0, finish, say
from tario_jax.config import InputError

SUMMARY = "a checkpoint as a bundle: an exported function for CPU, GPU and TPU, its weights, and what they are"
EXAMPLES = """
    tario export runs/quickstart --out=bundle
    tario export runs/quickstart --out=small --weights=int8
    tario export runs/quickstart --out=for_onnx --onnx=1x49,8x49
    tario export runs/4b --out=large --weights=bfloat16 --compute=bfloat16 --no-golden
"""
GROUPS_READ = ()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="of the run whose newest checkpoint is exported")
    parser.add_argument("--out", required=True, type=Path, help="folder of the bundle, which is not there yet")
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8"), default="float32",
                        help="how matrices and the table of genes are stored")  # fmt: skip
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="float32", help="type of the arithmetic")
    parser.add_argument("--largest-um", type=above_0, default=0.0, metavar="UM",
                        help="side of the largest squares that may be asked; at least those of training; by default "
                        "four times those, within the window")  # fmt: skip
    parser.add_argument("--no-golden", action="store_true",
                        help="without an input and its output, for a model larger than the memory here")  # fmt: skip
    parser.add_argument("--onnx", default="", metavar="WINDOWSxSQUARES,…",
                        help="also as ONNX, a file for each of these sizes")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    try:
        import flatbuffers  # noqa: F401, what jax writes an exported function with, and does not install

        from tario_jax.export.bundle import Wanted, export_bundle
        from tario_jax.export.onnx_file import OnnxSizes
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'tario-jax[export]'") from None

    sizes = tuple(OnnxSizes.of(text) for text in options.onnx.split(",")) if options.onnx else ()
    wanted = Wanted(options.weights, options.compute, options.largest_um, not options.no_golden, sizes)
    signature = export_bundle(options.workdir, options.out, wanted, say)
    of_files = {path.name: path.stat().st_size for path in sorted(options.out.iterdir())}
    table = "\n".join(f"{name:<40}{size / 1e6:>12,.2f} MB" for name, size in of_files.items())
    banner = f"\n{signature['banner']}" if signature["banner"] else ""
    return finish(
        options, f"{table}\nbundle: {options.out.resolve()}{banner}", {"signature": signature, "bytes": of_files}
    )
