"""FLOPs of a training step, counted from the model and not from a compiled program.

Convention: two FLOPs a multiply-add; a weight costs two a row forward and four backward; attention costs 4 D a pair of
tokens and head forward and 8 D backward, for the pairs that the visibility rule allows. What a remat policy computes
again, softmax, norms, pooling and the optimiser are not counted: this is what MFU is told of. Slots of bins count as
full: of 36 µm bins in tiles of 144 µm they are, in tiles of 128 µm a fifth stays empty.
"""

import dataclasses

from tario_jax.config import Config, ModelConfig
from tario_jax.model.he_encoder import WIDE, WIDE_LAYERS, Pyramid
from tario_jax.model.stain import texture_count
from tario_jax.tokens.batch import Layout
from tario_jax.tokens.hidden import GROUPS


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Of one step, all rows."""

    decoder: float  # its weights
    encoders: float  # H&E, contents and queries of bins
    gene_head: float  # and reading contents through the gene table
    attention: float

    @property
    def total(self) -> float:
        return self.decoder + self.encoders + self.gene_head + self.attention


def step_flops(config: Config, layout: Layout) -> StepFlops:
    """FLOPs of a step of `config.data.rows` rows that are full.

    A frozen trunk has no gradients of its weights, and none passes through what nothing that is trained lies before:
    the H&E encoder and the queries; in one-shot training, where no content is read, the decoder too.
    """
    if config.train.learns == "he":
        return _of_he_alone(config, layout)
    frozen = config.start.trained != "all"
    through = 0 if frozen and config.data.one_shot else 1
    trunk = 1 + through + (not frozen)  # passes of its weights: forward, back through them, and their own gradients
    model, rows = config.model, config.data.rows
    d, r, genes = model.width, model.gene_dim, layout.genes_padded
    patches, bins = layout.tiles * layout.patches_per_tile, layout.tiles * layout.bins_per_tile
    contents = 0 if config.data.one_shot else bins
    seen = patches + contents
    decoder, patch = _layers(model, seen, bins), _patch(model, layout)
    of_contents = trunk * contents * (r * d + 2 * d + d * d)  # and what queries know of those around them
    encoders = (1 if frozen else 3) * (patches * patch + bins * (d * d + 2 * d)) + of_contents
    head = bins * (trunk * d * r + (2 + through) * r * genes) + 2 * contents * r * genes  # counts have no gradient
    pairs = sum(
        model.layers // len(model.pattern) * allowed_pairs(config, layout, local=kind == "local")
        for kind in model.pattern
    )
    attention = (4.0 + 8.0 * through) * model.head_dim * model.heads * pairs
    return StepFlops(2.0 * rows * trunk * decoder, 2.0 * rows * encoders, 2.0 * rows * head, rows * attention)


def _of_he_alone(config: Config, layout: Layout) -> StepFlops:
    """Of patches that are seen and of those that are hidden, each once: what one of the other kind takes is in vain."""
    model, rows, patches = config.model, config.data.rows, layout.tiles * layout.patches_per_tile
    seen = patches / GROUPS
    hidden = patches - seen
    looks = hidden * model.width * texture_count(layout.patch_px)
    pairs = 0.0
    for kind in model.pattern:
        parts = layout.tiles if kind == "local" else layout.windows_per_row
        pairs += model.layers / len(model.pattern) * seen * patches / parts
    return StepFlops(6.0 * rows * _layers(model, seen, hidden), 6.0 * rows * patches * _patch(model, layout),
                     6.0 * rows * looks, 12.0 * rows * model.head_dim * model.heads * pairs)  # fmt: skip


def _layers(model: ModelConfig, seen: float, queries: float) -> float:
    """Multiply-adds of the weights of all layers: only what is seen has keys and values."""
    d = model.width
    of_query = 2 * d * model.heads * model.head_dim + 3 * d * model.mlp_width
    of_key = 2 * d * model.kv_heads * model.head_dim
    return model.layers * ((seen + queries) * of_query + seen * of_key)


def _patch(model: ModelConfig, layout: Layout) -> float:
    """Multiply-adds of the encoder of one patch."""
    d, features = model.width, texture_count(layout.patch_px)
    patch = _pyramid(Pyramid.of(layout.patch_px), model.stem_width, d) + features * d + d * d
    if layout.frozen_features:
        patch += min(model.frozen_axes, layout.frozen_features) * (layout.frozen_features / 3 + d)  # axes: forward only
    return patch


def _pyramid(pyramid: Pyramid, c: int, d: int) -> int:
    """Multiply-adds of the convolutions of a patch."""
    wide, large = WIDE * c, pyramid.large**2
    small = large * pyramid.cells**2
    of_small = small * (9 * 3 * pyramid.cell_px**2 * c + 9 * c * c)
    return of_small + large * (pyramid.cells**2 * c * wide + WIDE_LAYERS * 9 * wide**2 + wide * d)


def allowed_pairs(config: Config, layout: Layout, *, local: bool) -> int:
    """Pairs of tokens of a row that a layer allows, all of its bins measured: the same for every order of writing.

    H&E sees the H&E of its segment, and so do contents and queries. A content sees itself. Of two bins of one group
    each content sees the other and no query does; of different groups the later content and the later query see the
    earlier one: two pairs either way.
    """
    data = config.data
    if local:
        segments, tiles = layout.tiles, 1
    elif data.sequence == "patient":
        segments, tiles = 1, layout.tiles
    else:
        segments, tiles = layout.windows_per_row, layout.tiles_per_window
    patches, bins = tiles * layout.patches_per_tile, tiles * layout.bins_per_tile
    if data.one_shot:
        return segments * patches * (patches + bins)
    return segments * (patches * patches + 2 * patches * bins + bins * bins)
