import dataclasses
import json

import jax
import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, tiny_config

from tario_jax.bench.made_batch import made_batch
from tario_jax.bench.phases import COLLECTIVES, REST, Place, place_of, places
from tario_jax.bench.rates import Sizes, measure_rates
from tario_jax.cli import main as cli
from tario_jax.model.build import build
from tario_jax.parallel.chips import chip_of_device
from tario_jax.train.aot import pod_layout

TINY = """
from tario_jax.config import Config, DataConfig, ModelConfig


def get_config():
    data = DataConfig(bin_um=12.0, window_um=48.0, tile_um=24.0, he_um_per_px=1.0, patch_px=8, rows=2,
                      groups=((1, 0.5), (4, 0.5)))
    return Config(name="tiny", data=data, model=ModelConfig(width=32, layers=2, heads=2, kv_heads=1, head_dim=16,
                  mlp_width=64, pattern=("local", "global"), stem_width=8, gene_dim=8))
"""


def two_layers(groups, **data):
    """Local and global layers; keys are shared by heads."""
    sizes = {"layers": 2, "pattern": ("local", "global"), "heads": 4, "kv_heads": 2, "head_dim": 8}
    return tiny_config(data={"windows_per_row": 2, "groups": groups} | data, model=sizes)


def test_a_made_batch_is_full_and_the_same_again():
    config = two_layers(((4, 1.0),))
    layout = pod_layout(config, len(PANEL))
    batch = made_batch(config, layout, len(PANEL), 7)
    jax.tree.map(np.testing.assert_array_equal, batch, made_batch(config, layout, len(PANEL), 7))
    assert (batch.segment_BxT >= 0).all() and (batch.bin_measured_BxTxN == 1).all()
    assert set(np.unique(batch.bin_step_BxTxN)) == {1, 2, 3, 4}
    detections = batch.count_BxC.sum(1)
    assert (detections == detections[0]).all() and detections[0] > 0.95 * layout.count_capacity
    other = made_batch(config, layout, len(PANEL), 8)
    assert (other.he_BxTxPxYxXx3 != batch.he_BxTxPxYxXx3).any()


@pytest.mark.parametrize(
    ("op_name", "place"),
    [
        ("jit(step)/jvp(decoder)/while/body/closed_call/dot_general", Place("MLP & projections")),
        ("jit(step)/transpose(jvp(decoder))/while/body/attention/exp", Place("attention", True)),
        ("jit(step)/jvp(encoders)/gene_head/while/body/dot", Place("gene head & likelihood")),
        ("jit(step)/optimiser/mul", Place("optimiser")),
        ("jit(step)/decoders/mul", Place(REST)),
        ("", Place(REST)),
    ],
)
def test_the_innermost_name_says_the_phase(op_name, place):
    assert place_of(op_name) == place


def test_what_the_compiler_made_has_the_phase_of_its_loop():
    hlo = """
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %copy.1 = f32[4]{0} copy(%x)
  %exp.1 = f32[4]{0} exponential(%x), metadata={op_name="jit(step)/jvp(decoder)/while/body/attention/exp"}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %while.1 = (s32[], /*index=1*/f32[4]{0}) while(%t), condition=%c, body=%body, metadata={op_name="jvp(encoders)/while"}
  %all-reduce.1 = f32[4]{0} all-reduce(%x), to_apply=%sum, metadata={op_name="jit(step)/optimiser/add"}
  ROOT %copy.2 = f32[4]{0} copy(%y)
}
"""
    told = {name: place.phase for name, place in places(hlo).items()}
    assert told == {"copy.1": "encoders", "exp.1": "attention", "while.1": "encoders", "all-reduce.1": COLLECTIVES,
                    "copy.2": REST}  # fmt: skip


def test_rates_are_of_this_machine():
    rates = measure_rates("float32", Sizes(64, 32, 48), rounds=1)
    assert all(rate > 1e6 for rate in rates[:3]) and not rates.overlap
    assert chip_of_device("NVIDIA H100 80GB HBM3").rates.matmul_flops == 989e12 and chip_of_device("cpu") is None


@pytest.mark.slow
def test_the_command_tells_tokens_flops_and_phases(tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(TINY)
    answer = tmp_path / "step.json"
    words = [f"--config={tmp_path / 'tiny.py'}", "--rows=3", "--genes=50", "--rounds=2", "--leave-out=torch"]
    assert cli.main(["bench", "step", *words, f"--trace={tmp_path / 'trace'}", f"--json={answer}"]) == 0
    said, told = capsys.readouterr().out, json.loads(answer.read_text())
    assert "round 2/2" in said and said.rstrip().endswith(told["table"]) and "--leave-out=torch" in told["table"]
    # 4 tiles of 9 patches and 4 bins, which are read and asked
    assert told["tokens"] == 3 * 4 * (9 + 4 + 4) and told["rows"] == 3 and told["mfu"] is None
    assert told["tokens_per_second"] == pytest.approx(told["tokens"] / told["seconds_a_step"], rel=1e-4)
    assert told["flops"]["total"] / told["seconds_a_step"] == pytest.approx(told["flops_per_second"], rel=1e-4)
    assert sum(phase["share"] for phase in told["phases"].values()) == pytest.approx(1, rel=1e-3)
    assert sum(phase["seconds"] for phase in told["phases"].values()) == pytest.approx(told["seconds_a_step"], rel=1e-3)
    for phase in ("attention", "MLP & projections", "gene head & likelihood", "encoders", "optimiser"):
        assert told["phases"][phase]["seconds"] > 0, phase
    assert told["phases"]["attention"]["backward_seconds"] > 0 and told["phases"][REST]["share"] < 0.3
    assert set(told["rates"]) == {"matmul_flops", "memory_bytes", "exponentials"}
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_a_peer_that_there_is_not(tmp_path):
    from tario_jax.bench.step import check_left_out

    refused(lambda: check_left_out(["tensorflow"]), "--leave-out=tensorflow", "torch")


def test_a_config_whose_step_the_peer_does_not_do_leaves_it_out():
    from tario_jax.bench.step import peer_lacks

    assert peer_lacks(tiny_config()) is None
    for fields, word in (
        ({"optim": {"z_loss": 1e-4}}, "z-loss"), ({"optim": {"optimiser": "muon"}}, "optim.optimiser is 'muon'"),
        ({"train": {"accumulate": 2}}, "train.accumulate is 2"),
        ({"data": {"frozen_encoder": "made"}}, "data.frozen_encoder is 'made'"),
    ):  # fmt: skip
        assert word in peer_lacks(tiny_config(**fields))


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        two_layers(((4, 1.0),)),
        two_layers(((1, 0.5), (0, 0.5)), sequence="patient"),
        two_layers(((1, 1.0),)),
        dataclasses.replace(two_layers(((2, 1.0),)), model=dataclasses.replace(
            two_layers(((2, 1.0),)).model, tie_genes=False)),
        dataclasses.replace(two_layers(((4, 1.0),)), model=dataclasses.replace(
            two_layers(((4, 1.0),)).model, base_width=16, base_head_dim=4, base_gene_dim=8)),
    ],
    ids=("groups", "patient", "one_shot", "own_table", "mup"),
)  # fmt: skip
def test_the_peer_is_the_same_model(config):
    """Loss, norm and every gradient, of the same weights and tokens."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'tario-jax[peer]'")
    import optax

    from tario_jax.bench.step_torch import TorchStep
    from tario_jax.parallel.mesh import make_mesh

    layout = pod_layout(config, len(PANEL))
    batch = made_batch(config, layout, len(PANEL), 0)
    built = build(config.model, len(PANEL), config.data.patch_px, content=not config.data.one_shot)
    parameters, calibration = built.initialise(0, make_mesh(config.mesh))
    # a start at which every weight matters, those that start at 0 too
    keys = iter(jax.random.split(jax.random.key(1), 100))
    parameters = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), parameters)

    def loss(parameters):
        nll = built.merge(parameters, calibration).loss(batch)
        return (nll.total_nats + nll.gene_nats) / nll.detections

    ours, gradients = jax.jit(jax.value_and_grad(loss))(parameters)
    peer = TorchStep(config, parameters, calibration, batch, "float32")
    theirs, norm = peer.gradients()
    assert float(theirs) == pytest.approx(float(ours), rel=1e-5)
    assert float(norm) == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-4)
    scale = min(1.0, config.optim.clip_norm / float(norm))
    layers = gradients.pop("decoder")
    of_ours = {tuple(key.key for key in path): x for path, x in jax.tree_util.tree_leaves_with_path(gradients)}
    of_ours |= {("decoder", name): x for name, x in layers.items()}
    of_theirs = {path: weight.grad for path, weight in peer.weights.items()}
    of_theirs |= {("decoder", name): [layer[name].grad for layer in peer.layers] for name in layers}
    assert of_ours.keys() == of_theirs.keys()
    for path, expected in of_ours.items():
        expected = scale * np.asarray(expected)
        found = of_theirs[path]
        if found is None:  # the table of contents, where nothing reads them
            assert not expected.any(), path
            continue
        found = np.stack([x.numpy() for x in found]) if path[0] == "decoder" else found.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max() + 1e-9, err_msg=str(path))
    before = float(theirs)
    for _ in range(3):
        after, _ = peer.step()
    assert float(after) < before
