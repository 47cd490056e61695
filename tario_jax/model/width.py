"""muP: how a parameter's start and its learning rate follow from how the model grew beyond its base.

Maximal update parametrisation of Yang et al. 2022 (Tensor Programs V, arXiv:2203.03466): every activation, and its
change in a step, keeps its size in width, so the best learning rate does too. Table 3, for Adam, with n the growth of
fan_in against the base (variance of the start; learning rate, both against the standard parametrisation's):

    weight    fan_in  fan_out  variance     rate   here
    input     fixed   grows    1 / fan_in   1      texture_in, query_size, query_depth, content_total,
                                                   content_depth, stem_in, frozen.into; biases, norms,
                                                   hidden_token
    hidden    grows   grows    1 / fan_in   1/n    q, k, v, attention_out, mlp_*, query_he, near_in, texture_hidden,
                                                   and where their sizes grow stem_conv, stem_join, wide_conv, stem_out,
                                                   content_in, gene_in
    output    grows   fixed    1 / (fan_in · n)  1/n   total_weight, looks_out; gene_in where gene_dim does not grow

The table of genes is read by the head and by the content encoder: output and input in one. It takes the form of table 8
(for tied embeddings): entries that start and move as in the base whatever gene_dim is, and 1/n in front of what the
head makes with them. Scores of attention are divided by the dimension of a head, not by its root (definition 4.1),
such that they are as before at the base's.

Muon's matrices need no rate of their own: its step has a spectral norm of sqrt(max(1, fan_out / fan_in)), which is the
condition for such updates itself (Yang, Simon & Bernstein 2023, arXiv:2310.17813). Depth is outside of this: residual
branches start at variance 1 / (2 · layers) in all parametrisations.
"""

from typing import NamedTuple

from tario_jax.config import ModelConfig


class Growth(NamedTuple):
    """Sizes over those of the base; all 1 in the standard parametrisation."""

    width: float  # heads × head_dim and mlp_width count as growing with it
    head_dim: float
    gene_dim: float
    stem_width: float

    @classmethod
    def of(cls, config: ModelConfig) -> "Growth":
        def grown(name: str) -> float:
            base = getattr(config, f"base_{name}")
            return getattr(config, name) / base if base else 1.0

        return cls(*map(grown, cls._fields))
