"""tario compile."""

import argparse
import os

from tario_jax.cli.options import at_least_one, config_flags, config_of, finish, say
from tario_jax.config import MESH_AXES, InputError
from tario_jax.config_files import override

SUMMARY = "the training step compiled for a pod that is not here: does it fit, what is sent, how fast can it be"
EXAMPLES = """
    tario compile --config=configs/tario2_200m.py:v5e:16x16 --topology=v5e:16x16
    tario compile --config=configs/tario2_1b.py --topology=v5p:4x8x8 --mesh=fsdp=32,context=8 --batch=64
    tario compile --config=configs/tario2_4b.py --topology=v5p:8x8x8 --slices=2 --mesh=replica=2,fsdp=64,context=8
    tario compile --config=configs/tario2_1b.py --topology=v5p:4x8x8 --search --tries=6 --json=found.json
"""
GROUPS_READ = None


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser, workdir=False)
    parser.add_argument("--topology", required=True, help="chip and grid, as v5p:4x8x8, which is 256 chips")
    parser.add_argument(
        "--slices", type=at_least_one, default=1, help="so many such pods; the axis replica crosses them"
    )
    parser.add_argument("--mesh", metavar="AXIS=N,…",
                        help=f"chips along {', '.join(MESH_AXES)}; that of the config by default")  # fmt: skip
    parser.add_argument("--batch", type=at_least_one, help="rows of the global batch; those of the config by default")
    parser.add_argument("--genes", type=at_least_one, default=18963, help="of the panel (18963)")
    parser.add_argument("--search", action="store_true",
                        help="rank all meshes of these chips, and compile the best until one fits")  # fmt: skip
    parser.add_argument("--tries", type=at_least_one, help="with --search: at most so many compiles (4)")


def run(options: argparse.Namespace) -> int:
    from tario_jax.parallel.topology import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    # a program for a chip that is not here could be stored, but not loaded again
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    from tario_jax.train.aot import Pod, compile_apart

    config = config_of(options)
    if options.search and options.mesh:
        raise InputError(f"--mesh={options.mesh}: --search chooses the mesh; leave one of them out")
    if options.tries and not options.search:
        raise InputError(f"--tries={options.tries}: only --search tries several meshes; add it, or leave this out")
    if options.mesh is not None:
        config = override(config, {f"mesh.{axis}": size for axis, size in _mesh(options.mesh).items()})
    if options.batch:
        config = override(config, {"data.rows": str(options.batch)})
    if options.search:
        from tario_jax.train.mesh_search import search_mesh

        pod = Pod.of(options.topology, options.slices)
        result = search_mesh(config, pod, genes=options.genes, tries=options.tries or 4, say=say)
    else:
        result = compile_apart(config, options.topology, options.slices, genes=options.genes, say=say)
    finish(options, result["table"], result)
    return 0 if result.get("fits") else 1


def _mesh(text: str) -> dict[str, str]:
    """Sizes by axis; those that are not named are 1."""
    sizes = dict.fromkeys(MESH_AXES, "1")
    named: set[str] = set()
    for part in text.split(","):
        axis, equals, size = part.partition("=")
        if axis in named:
            raise InputError(f"--mesh={text}: {axis} stands twice; expected each axis once")
        named.add(axis)
        if axis not in MESH_AXES or not equals:
            raise InputError(f"--mesh={text}: expected AXIS=N with commas between them, axes {', '.join(MESH_AXES)}")
        sizes[axis] = size
    return sizes
