"""FLOPs of a step: allowed pairs against the rule itself, weights against what XLA counts in a program."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config

from launch.sweep_file import read_sweep
from tario_jax.config import Config
from tario_jax.model.build import build
from tario_jax.model.flops import allowed_pairs, step_flops
from tario_jax.model.model import visibilities
from tario_jax.ops.visibility import visible
from tario_jax.tokens.batch import Batch, batch_arrays, empty_batch, make_layout, square_bins_per_tile
from tario_jax.tokens.order import write_steps


def layout_of(config: Config, genes: int = len(PANEL)):
    data = config.data
    return make_layout(data, genes, bins_per_tile=square_bins_per_tile(data), largest_bin_um=data.bin_um,
                       count_capacity=256)  # fmt: skip


def full_batch(config: Config, groups: int, rng: np.random.Generator) -> Batch:
    """Every bin measured; those of a sequence are written in random order."""
    layout = layout_of(config)
    batch = empty_batch(1, layout)
    segment_T = np.repeat(np.arange(layout.windows_per_row), layout.tiles_per_window)
    if config.data.sequence == "patient":
        segment_T[:] = 0
    step_TxN = np.ones(batch.bin_step_BxTxN.shape[1:], np.int32)
    for segment in np.unique(segment_T):
        mine = segment_T == segment
        ranks = rng.permutation(step_TxN[mine].size)
        step_TxN[mine] = write_steps(ranks, groups).reshape(step_TxN[mine].shape)
    return batch._replace(segment_BxT=segment_T[None].astype(np.int32), bin_step_BxTxN=step_TxN[None],
                          bin_measured_BxTxN=np.ones_like(batch.bin_measured_BxTxN))  # fmt: skip


@pytest.mark.parametrize("sequence", ("window", "patient"))
@pytest.mark.parametrize(("groups", "content"), [(1, False), (1, True), (4, True), (0, True)])
def test_allowed_pairs_are_those_of_the_rule(groups, content, sequence):
    mixture = ((groups, 1.0), *[(2, 1.0)] * content)
    config = tiny_config(data={"windows_per_row": 2, "sequence": sequence, "groups": mixture})
    assert config.data.one_shot != content
    rng = np.random.default_rng(0)
    for local in (False, True):
        seen, queries, keys = visibilities(full_batch(config, groups, rng), content, local=local)
        counted = sum(int(np.asarray(visible(looking, keys)).sum()) for looking in (seen, queries))
        assert counted == allowed_pairs(config, layout_of(config), local=local)


def test_weights_are_what_xla_counts():
    """A forward pass with dense attention: 2 FLOPs a multiply-add of weights, and 4 D of every pair."""
    config = tiny_config(data={"groups": ((4, 1.0),)}, model={"layers": 1, "width": 256, "mlp_width": 1024,
                                                              "gene_dim": 128, "attention": "reference"})  # fmt: skip
    layout = layout_of(config)
    built = build(config.model, len(PANEL), config.data.patch_px, content=True)

    def forward(parameters, calibration, batch):
        nll = built.merge(parameters, calibration).loss(batch)
        return nll.total_nats + nll.gene_nats

    abstract = (*built.abstract(), batch_arrays(config.data.rows, layout))
    counted = jax.jit(forward).lower(*abstract).compile().cost_analysis()["flops"]
    flops = step_flops(config, layout)
    bins = layout.tiles * layout.bins_per_tile
    seen = layout.tiles * layout.patches_per_tile + bins
    dense = 4 * config.model.head_dim * config.model.heads * (seen + bins) * seen * config.data.rows
    told = (flops.total - flops.attention) / 3 + dense
    assert counted == pytest.approx(told, rel=0.15)
    wider = step_flops(dataclasses.replace(config, data=dataclasses.replace(config.data, rows=16)), layout)
    assert wider.total == pytest.approx(flops.total * 16 / config.data.rows)


def test_parts_of_the_ablation_are_removed_at_equal_compute():
    configs = read_sweep("configs/sweeps/ablation.py").configs
    counted = {name: step_flops(config, layout_of(config, 600)).total * config.train.steps
               for name, config in configs.items()}  # fmt: skip
    whole = counted["whole_seed0"]
    assert configs["without_contents_seed0"].train.steps > 1.05 * configs["whole_seed0"].train.steps
    for name, flops in counted.items():  # the optimiser is not counted: 0.03 of the time is Muon's
        assert flops / (1.03 if "muon" in name else 1.0) == pytest.approx(whole, rel=0.01), name
