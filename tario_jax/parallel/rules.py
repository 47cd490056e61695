"""From the logical axes of a parameter to the mesh.

A parameter is declared once, with its logical axes; this table is the only place where they meet mesh axes.
"""

import math

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tario_jax.config import InputError

# logical axis -> mesh axes; () = whole on every device. Weights without an axis to be multiplied in parts over `tensor`
# are stored in parts over it all the same: what a device holds falls with both.
RULES: dict[str, tuple[str, ...]] = {
    "layers": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "genes": ("tensor",),
    "gene_bias": ("tensor", "fsdp"),
    "gene_dim": ("fsdp",),
    "hidden": ("fsdp", "tensor"),
    "pixels": (),
    "neighbours": ("fsdp",),
    "stem": (),
    "features": (),
    "vector": (),
}


def partition_spec(axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, name: str) -> PartitionSpec:
    """Mesh axes of one parameter.

    Raises `InputError` for a logical axis without a rule, two axes on one mesh axis, or a size that does not divide.
    """
    if len(axes) != len(shape):
        raise InputError(f"parameter {name}: axes {axes} for shape {shape}; expected one axis a dimension")
    spec: list[tuple[str, ...] | None] = []
    laid: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        if axis not in RULES:
            raise InputError(f"parameter {name}: logical axis {axis!r} has no rule; expected one of {', '.join(RULES)}")
        targets = tuple(target for target in RULES[axis] if mesh.shape[target] > 1)  # of one device: nothing to split
        for target in targets:
            if target in laid:
                raise InputError(f"parameter {name}: axes {axes} lay {target!r} twice; change the rule of {axis!r}")
        parts = math.prod(mesh.shape[target] for target in targets)
        if size % parts:
            along = " × ".join(f"{target}={mesh.shape[target]}" for target in targets)
            raise InputError(f"parameter {name}: axis {axis!r} of size {size} does not divide over {along}")
        laid.update(targets)
        spec.append(targets[0] if len(targets) == 1 else targets or None)
    return PartitionSpec(*spec)


def state_shardings(abstract: nnx.State, mesh: Mesh) -> nnx.State:
    """Shardings of a split module's state, by the axes that its variables declare."""

    def sharding(path, variable):
        name = ".".join(map(str, path))
        return variable.replace(NamedSharding(mesh, partition_spec(variable.axes, variable.shape, mesh, name)))

    return nnx.map_state(sharding, abstract)


def like_parameters(tree, parameters, shardings, mesh: Mesh):
    """Shardings of an optimiser state: a leaf with a parameter's path and shape follows it, all others are whole."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    flat = {
        _names(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
    }
    whole = NamedSharding(mesh, PartitionSpec())

    def follow(path, leaf):
        names = _names(path)
        for start in range(len(names)):
            shape, sharding = flat.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return whole

    return jax.tree_util.tree_map_with_path(follow, tree)


def _names(path) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def count(tree) -> int:
    """Number of values in a tree of (abstract) arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
