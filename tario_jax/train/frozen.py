"""Fine-tuning with a frozen trunk: which parameters move, and trees without the others.

The step differentiates with respect to the moving ones alone: no gradient of the trunk's weights is computed, and where
no gradient has to pass through the trunk (one-shot: nothing in front of it moves) there is no backward pass at all.
"""

import jax

from tario_jax.config import StartConfig
from tario_jax.model.build import Built, Tree

_OF_GENES = {"genes", "gene_bias"}


def trained_parameters(built: Built, config: StartConfig) -> Tree | None:
    """A bool for every parameter, True where it is trained; None where all are.

    Of the gene tables: their rows, the genes' biases, and what is one number: the bias of the density of detections,
    which moves with the panel, and where totals are negative binomial their size.
    """
    if config.trained == "all":
        return None
    return built.by_axes(lambda axes: not axes or bool(_OF_GENES & set(axes)))


def only(tree: Tree, trained: Tree | None) -> Tree:
    """`tree` with None, which is no leaf, in place of what is not trained."""
    return tree if trained is None else jax.tree.map(lambda leaf, moves: leaf if moves else None, tree, trained)


def filled(some: Tree, others: Tree, trained: Tree | None) -> Tree:
    """The whole tree: what is trained from `some`, all else from `others`."""
    if trained is None:
        return some
    return jax.tree.map(lambda moves, new, old: new if moves else old, trained, some, others,
                        is_leaf=lambda leaf: leaf is None)  # fmt: skip
