"""Learning from H&E alone: what is hidden stays hidden, it learns, and a run of counts starts from it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from made_encoders import made_encoder
from refusals import refused
from tiny_tissue import PANEL, tiny_config, tiny_section, write_corpus

from tario_jax.config import EvaluateConfig, InputError, SplitConfig, StartConfig
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import split_corpus
from tario_jax.he_features.encode import encode_corpus
from tario_jax.model.build import build_of
from tario_jax.model.flops import step_flops
from tario_jax.parallel.mesh import make_mesh
from tario_jax.predict.predictor import Predictor, load
from tario_jax.tokens.hidden import GROUPS, of_he
from tario_jax.train.checkpoint import Checkpoints, find_checkpoint
from tario_jax.train.loop import train
from tario_jax.train.run import Run
from tario_jax.train.start import start

SIDES = dict(zip("ABCDEF", ["train"] * 4 + ["validation", "held_out"], strict=True))


def silent(line: str) -> None:
    pass


def he_config(**fields):
    fields["train"] = {"learns": "he"} | fields.get("train", {})
    return tiny_config(**fields)


def test_fields_of_bins_and_genes_are_not_asked_for_and_not_taken():
    finer = he_config(evaluate=EvaluateConfig(bin_um=9.0, read_um=(36.0,)))  # nothing is evaluated
    assert finer.evaluate.bin_um < finer.data.bin_um
    refused(lambda: tiny_config(evaluate=finer.evaluate), "evaluate.read_um holds 36")
    refused(lambda: he_config(optim={"z_loss": 1e-4}), "optim.z_loss is 0.0001", "no softmax over genes")


@pytest.fixture(scope="module")
def he_corpus(tmp_path_factory):
    """The tiny corpus's tissue, of which only two patients of training have counts."""
    sections = [tiny_section(f"{patient}1", patient, seed) for seed, patient in enumerate(SIDES)]
    sections[2:4] = [dataclasses.replace(section, detections=None) for section in sections[2:4]]
    return write_corpus(tmp_path_factory.mktemp("he") / "corpus", sections, split=SIDES)


@pytest.fixture(scope="module")
def he_run(he_corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("he_run") / "run"
    train(he_config(), he_corpus, workdir, silent)
    return workdir


@pytest.fixture(scope="module")
def begun(he_corpus):
    """(run, its first batch, what a model of it says and its loss, both of (parameters, batch))."""
    run, state = start(Run.of(he_config(), he_corpus), silent)
    batch = next(run.batches(0, 0, silent))
    # as it starts, what is read out hardly depends on what is seen
    louder = {**state.parameters, "looks_out": 10 * state.parameters["looks_out"]}
    model = [jax.jit(lambda batch, of=of: of(run.built.merge(louder, state.calibration), batch))
             for of in (lambda model, batch: model(batch), lambda model, batch: model.loss(batch))]  # fmt: skip
    return run, batch, *model


def test_sections_without_counts_are_learnt_from(he_corpus):
    ids = [section.id for section in split_corpus(he_corpus, SplitConfig(), he_alone=True).train]
    assert ids == ["A1", "B1", "C1", "D1"]
    assert [section.id for section in split_corpus(he_corpus, SplitConfig()).train] == ["A1", "B1"]


def test_half_of_the_patches_are_hidden_and_bins_are_patches(begun):
    _, batch, *_ = begun
    np.testing.assert_array_equal(batch.bin_xy_um_BxTxNx2, batch.patch_xy_um_BxTxPx2)
    assert (batch.bin_step_BxTxN == 2).mean() == 0.5 and (batch.count_BxC == 0).all()


def test_what_is_hidden_is_not_seen(begun):
    """Other pixels in a hidden patch change no prediction, those of a seen one change those of its window."""
    _, batch, said, _ = begun
    before = np.asarray(said(batch))
    for step, moves in ((2, False), (1, True)):
        tile, patch = np.argwhere(batch.bin_step_BxTxN[0] == step)[0]
        he = batch.he_BxTxPxYxXx3.copy()
        he[0, tile, patch] = 255 - he[0, tile, patch]
        moved = np.abs(np.asarray(said(batch._replace(he_BxTxPxYxXx3=he))) - before).max(-1)
        hidden = (batch.bin_step_BxTxN[0] == 2).ravel()
        assert (moved[0][hidden].max() > 1e-4) == moves and moved[1:].max() == 0


def test_the_loss_is_half_the_squared_distance_of_what_is_hidden(begun):
    """Against float64, from the pixels."""
    run, batch, said, loss = begun
    _, state = start(run, silent)
    encoder = state.calibration["he_encoder"]
    found, looks = loss(batch), np.asarray(said(batch), np.float64)
    model = run.built.merge(state.parameters, state.calibration)
    texture = np.asarray(model.he_encoder.looks(batch)[1], np.float64).reshape(looks.shape)
    assert np.abs(texture).max() <= 6 and np.shape(encoder["texture_mean"]) == looks.shape[-1:]
    hidden = (batch.bin_step_BxTxN == 2).reshape(looks.shape[:2])
    expected = 0.5 * ((looks - texture)[hidden] ** 2).sum()
    assert float(found.total_nats) == pytest.approx(expected, rel=1e-5)
    assert float(found.detections) == hidden.sum() * looks.shape[-1] and float(found.gene_nats) == 0
    nothing = batch._replace(bin_measured_BxTxN=np.zeros_like(batch.bin_measured_BxTxN))
    assert float(loss(nothing).total_nats) == 0 == float(loss(nothing).detections)


def test_it_learns_what_lies_between(he_run):
    """A hidden patch is nearer to what those around it tell than to the mean of training tissue."""
    lines = [json.loads(line) for line in (he_run / "metrics.jsonl").read_text().splitlines()]
    *_, reached = (line["validation_nats_per_detection"] for line in lines if "validation_nats_per_detection" in line)
    first = next(line["loss_nats_per_detection"] for line in lines)
    assert 0.3 < first < 0.7 and reached < 0.92 * first


def test_counts_start_from_its_encoder_and_decoder(he_run, he_corpus):
    config = tiny_config(start=StartConfig(str(he_run)), data={"groups": ((1, 0.5), (4, 0.5))}, model={"gene_dim": 8})
    said = []
    run, state = start(Run.of(config, he_corpus), said.append)
    _, seeded = start(Run.of(dataclasses.replace(config, start=StartConfig()), he_corpus), silent)
    _, step = find_checkpoint(he_run)
    with Checkpoints(he_run) as checkpoints:
        built = build_of(checkpoints.provenance(step).config, len(PANEL))
        theirs, statistics = jax.device_get(checkpoints.model(step, built, make_mesh(config.mesh)))
    for part, like in {"he_encoder": theirs, "decoder": theirs, "bin_encoder": seeded.parameters}.items():
        jax.tree.map(np.testing.assert_array_equal, state.parameters[part], like[part])
    np.testing.assert_array_equal(state.parameters["gene_table"], seeded.parameters["gene_table"])
    jax.tree.map(np.testing.assert_array_equal, state.calibration["he_encoder"], statistics["he_encoder"])
    assert "H&E alone: its H&E encoder and decoder" in said[-1]
    assert run.provenance.started_from["seen_patients"] == ["A", "B", "C", "D", "E"]
    predictor = Predictor(run.provenance, state.parameters, state.calibration)
    refused(lambda: predictor.training_stain, "--stain=training", "began from H&E alone", "--stain=IMAGE")


@pytest.mark.slow
def test_what_reads_stored_features_begins_anew(he_corpus, tmp_path):
    """They are left out of learning from H&E alone: what would read them only decays there."""
    shutil.copytree(he_corpus.root.local, tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    encode_corpus(corpus, made_encoder(), say=silent)
    stored = {"frozen_encoder": "made"}
    train(he_config(data=stored, train={"steps": 2, "checkpoint_every": 2}), corpus, tmp_path / "he", silent)
    config = tiny_config(data=stored, start=StartConfig(str(tmp_path / "he")))
    _, state = start(Run.of(config, corpus), silent)
    _, seeded = start(Run.of(dataclasses.replace(config, start=StartConfig()), corpus), silent)
    for ours, theirs in ((state.parameters, seeded.parameters), (state.calibration, seeded.calibration)):
        jax.tree.map(np.testing.assert_array_equal, ours["he_encoder"]["frozen"], theirs["he_encoder"]["frozen"])


def test_it_goes_on_from_itself(he_run, he_corpus):
    run, state = start(Run.of(he_config(start=StartConfig(str(he_run))), he_corpus), silent)
    _, step = find_checkpoint(he_run)
    with Checkpoints(he_run) as checkpoints:
        theirs, _ = checkpoints.model(step, run.built, run.mesh)
    jax.tree.map(np.testing.assert_array_equal, state.parameters, theirs)


def test_what_it_is_not_for_is_refused(he_run, he_corpus, tiny_run):
    assert "learnt from H&E alone" in refused(lambda: load(he_run))
    assert "learnt from counts" in refused(lambda: begin(he_config(start=StartConfig(str(tiny_run))), he_corpus))
    wider = tiny_config(start=StartConfig(str(he_run)), model={"width": 64})
    assert "model.width = 32, now 64" in refused(lambda: begin(wider, he_corpus))
    frozen_trunk = tiny_config(start=StartConfig(str(he_run), "gene_tables"))
    assert "set start.trained=all" in refused(lambda: begin(frozen_trunk, he_corpus))
    held_out = tiny_config(start=StartConfig(str(he_run)), split=SplitConfig(train=("A",), held_out=("B", "F")))
    assert "held out now: B" in refused(lambda: begin(held_out, he_corpus))
    assert "trains no genes" in refused(lambda: he_config(start=StartConfig("somewhere", "gene_tables")))
    with pytest.raises(InputError, match="'tario run' asks for a model of counts"):
        he_config().refuse_he_alone("tario run")


def begin(config, corpus):
    return start(Run.of(config, corpus), silent)


def test_flops_are_of_each_patch_once(begun):
    """No heads and one layer less change what they should, and only that: half of the patches are seen, half asked."""
    run, *_ = begun
    found = step_flops(run.config, run.layout)
    model, patches = run.config.model, run.layout.tiles * run.layout.patches_per_tile
    d, rows = model.width, run.config.data.rows
    weights = 2 * d * model.heads * model.head_dim + 3 * d * model.mlp_width + d * model.kv_heads * model.head_dim
    assert found.decoder == 6 * rows * model.layers * patches * weights
    assert found.attention == 12 * rows * model.layers * model.heads * model.head_dim * patches**2 // GROUPS
    assert of_he(run.config.data) == run.config.data
