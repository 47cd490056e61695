"""A run that starts from a checkpoint: with another panel, other bins, a frozen trunk; and who must not."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, tiny_config, tiny_section, write_corpus

from tario_jax.config import Config, SplitConfig, StartConfig
from tario_jax.config_files import override
from tario_jax.evaluate.report import banners
from tario_jax.model.flops import step_flops
from tario_jax.panel import Panel, match_genes
from tario_jax.parallel.mesh import make_mesh
from tario_jax.train import fine_tune
from tario_jax.train.calibrate import depths, gene_shares
from tario_jax.train.checkpoint import Checkpoints, find_checkpoint
from tario_jax.train.loop import train
from tario_jax.train.provenance import Provenance, refuse_other_run
from tario_jax.train.run import Run
from tario_jax.train.seal import seal
from tario_jax.train.start import start
from tario_jax.train.state import make_loss, to_devices

SIDES = dict(zip("ABCDEF", ["train"] * 4 + ["validation", "held_out"], strict=True))
KEPT = (7, 3, 0, 11, 5, 1, 9, 2)  # genes of PANEL, in another order, on the second panel
NEW_AT = (1, 4, 9)  # places of the genes that PANEL does not have
CONTENT = {"groups": ((1, 0.5), (4, 0.5))}


def silent(line: str) -> None:
    pass


def second_panel() -> Panel:
    """Eight genes of PANEL, one of them under another symbol with its id, and three new ones."""
    names = [PANEL.symbols[gene] for gene in KEPT]
    for place in NEW_AT:
        names.insert(place, f"NEW{place}")
    return Panel(tuple(names))


def at_old(panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    """(places on `panel`, places on PANEL) of the genes in common."""
    ours = [place for place, symbol in enumerate(panel.symbols) if symbol in PANEL.index]
    return np.array(ours), np.array([PANEL.index[panel.symbols[place]] for place in ours])


def on_second_panel(section, panel: Panel):
    """The section as an assay of the second panel sees it; every seventh detection is of a new gene."""
    found = section.detections
    ours, theirs = at_old(panel)
    number_G = np.full(len(PANEL), -1)
    number_G[theirs] = ours
    gene_D = number_G[found.gene_D]
    gene_D[::7] = np.array(NEW_AT)[np.arange(len(gene_D[::7])) % len(NEW_AT)]
    kept = gene_D >= 0
    found = dataclasses.replace(found, x_um_D=found.x_um_D[kept], y_um_D=found.y_um_D[kept],
                                gene_D=gene_D[kept].astype(np.int32))  # fmt: skip
    return dataclasses.replace(section, detections=found)


@pytest.fixture(scope="module")
def other_corpus(tmp_path_factory):
    """The tiny corpus's tissue, as real tissue of other patients on the second panel."""
    panel = second_panel()
    sides = {f"{name}x": side for name, side in SIDES.items()}
    sections = [on_second_panel(tiny_section(f"{patient}1", patient, seed), panel)
                for seed, patient in enumerate(sides)]  # fmt: skip
    return write_corpus(tmp_path_factory.mktemp("other") / "corpus", sections, panel=panel, kind="real", split=sides)


@pytest.fixture(scope="module")
def content_run(tiny_corpus, tmp_path_factory):
    """A run that reads contents, with a table of its own for them, and keeps a running mean."""
    workdir = tmp_path_factory.mktemp("content") / "run"
    train(config_of(None, data=CONTENT, model={"tie_genes": False}, train={"ema_decay": 0.9}), tiny_corpus, workdir,
          silent)  # fmt: skip
    return workdir


def config_of(checkpoint, trained: str = "all", **fields) -> Config:
    fields["train"] = {"steps": 4, "checkpoint_every": 4, "validate_every": 4} | fields.get("train", {})
    begun = StartConfig() if checkpoint is None else StartConfig(str(checkpoint), trained)
    return tiny_config(start=begun, **fields)


def begun(config: Config, corpus):
    """(run, its state at step 0, what it said)."""
    said = []
    run, state = start(Run.of(config, corpus), said.append)
    return run, state, said


def stored(workdir, corpus):
    """(built, parameters, calibration) that a workdir predicts with."""
    _, step = find_checkpoint(workdir)
    with Checkpoints(workdir) as checkpoints:
        built = Run.of(dataclasses.replace(checkpoints.provenance(step).config, start=StartConfig()), corpus).built
        return built, *jax.device_get(checkpoints.model(step, built, make_mesh(tiny_config().mesh)))


def equal(ours, theirs, message: str = ""):
    for (path, mine), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=f"{message} {jax.tree_util.keystr(path)}")


def trunk(parameters) -> dict:
    kept = {name: value for name, value in parameters.items() if name not in ("gene_table", "gene_bias", "total_bias")}
    encoder = {name: value for name, value in kept["bin_encoder"].items() if name != "gene_table"}
    return {**kept, "bin_encoder": encoder}


def of_genes_known(parameters) -> dict:
    """Without what has no gene of PANEL, and without the density's bias, which is fitted."""
    encoder = dict(parameters["bin_encoder"])
    if "gene_table" in encoder:
        encoder["gene_table"] = encoder["gene_table"][: len(PANEL)]
    rows = {name: parameters[name][: len(PANEL)] for name in ("gene_table", "gene_bias")}
    return {**parameters, "bin_encoder": encoder, **rows, "total_bias": 0}


def windows(run: Run) -> list:
    return [batch for _, batch in zip(range(3), run.batches(0, 0, silent), strict=False)]


def rates(built, parameters, calibration, batch) -> np.ndarray:
    """float64 [bins that count, genes]."""
    rates = jax.jit(lambda *trees: built.merge(*trees).rates(batch))
    found = np.asarray(rates(parameters, calibration), np.float64)
    return found[(batch.bin_measured_BxTxN > 0).reshape(found.shape[:2])]


def test_matched_genes_start_as_they_were_and_new_ones_claim_nothing(tiny_run, tiny_corpus, other_corpus):
    run, state, said = begun(config_of(tiny_run), other_corpus)
    built, theirs, their_calibration = stored(tiny_run, tiny_corpus)
    ours = jax.device_get(state.parameters)
    panel = second_panel()
    mine, old = at_old(panel)
    new = np.array(NEW_AT)
    equal(trunk(ours), trunk(theirs))
    mine_told, theirs_told = jax.device_get(state.calibration), their_calibration
    depth = mine_told["bin_encoder"].pop("depth_mean"), theirs_told["bin_encoder"].pop("depth_mean")
    equal(mine_told, theirs_told)
    share_G = np.exp(ours["gene_bias"][: len(panel)].astype(np.float64))  # the model's own, by which it reads depths
    expected = depths(list(run.split.train), share_G / share_G.sum())[0]
    assert depth[0] == pytest.approx(expected, rel=1e-6) and depth[0] != depth[1]
    np.testing.assert_array_equal(ours["gene_table"][mine], theirs["gene_table"][old])
    np.testing.assert_array_equal(ours["gene_bias"][mine], theirs["gene_bias"][old])

    weight = np.exp(theirs["gene_bias"][old].astype(np.float64))
    mean = (weight[:, None] * theirs["gene_table"][old]).sum(0) / weight.sum()
    np.testing.assert_allclose(ours["gene_table"][new], np.tile(mean, (3, 1)), rtol=1e-5, atol=1e-7)
    counts_G = sum(np.bincount(section.all_detections().gene_D, minlength=len(panel)) for section in run.split.train)
    of_new = np.exp(ours["gene_bias"][new].astype(np.float64)) / weight.sum()  # against all old genes together
    np.testing.assert_allclose(of_new, counts_G[new] / counts_G[mine].sum(), rtol=1e-2)
    assert (ours["gene_bias"][len(panel) :] == -30).all()

    assert said[0] == (
        f"starts from step 30 of {tiny_run}, trained on virtual tissue: 8 of 11 genes matched; "
        "3 new (NEW1, NEW4, NEW9); 4 of the checkpoint's dropped (GENE4, GENE6, GENE8, …)"
    )
    assert "stain" in said[1] and "density" in said[1] and len(said) == 2


@pytest.mark.slow
def test_old_genes_are_predicted_as_the_checkpoint_does(tiny_run, tiny_corpus, other_corpus):
    """Composition among the genes in common, bin by bin; and as many detections as there are. Of windows of which no
    depth is told: what the checkpoint makes of that was of other tissue."""
    run, state, _ = begun(config_of(tiny_run, data={"depth_told": 0.0}), other_corpus)
    built, theirs, their_calibration = stored(tiny_run, tiny_corpus)
    mine, old = at_old(second_panel())
    expected = found = 0.0
    for batch in windows(run):
        ours_NxG = rates(run.built, state.parameters, state.calibration, batch)
        expected, found = expected + ours_NxG.sum(), found + batch.count_BxC.sum()
        measured_BxWxG = np.ones((*batch.measured_gene_BxWxG.shape[:2], 1024), bool)
        measured_BxWxG[..., len(PANEL) :] = False
        theirs_NxG = rates(built, theirs, their_calibration, batch._replace(measured_gene_BxWxG=measured_BxWxG))
        ours_NxM, theirs_NxM = ours_NxG[:, mine], theirs_NxG[:, old]
        np.testing.assert_allclose(ours_NxM / ours_NxM.sum(1, keepdims=True),
                                   theirs_NxM / theirs_NxM.sum(1, keepdims=True), rtol=2e-4)  # fmt: skip
    assert expected == pytest.approx(found, rel=0.1)  # of other windows than those that it was fitted on


def test_a_gene_under_another_symbol_is_known_by_its_id(tiny_run, tmp_path):
    """GENE0 has another name on the new panel; GENE1's symbol is that of another gene there."""
    ids = tuple(f"ENSG{number:011d}" for number in range(1, 13))
    source = tmp_path / "source"
    shutil.copytree(tiny_run, source)
    where = source / "checkpoints/30"
    told = json.loads((where / "provenance.json").read_text())
    (where / "provenance.json").write_text(json.dumps(told | {"ensembl": list(ids)}))
    (where / "tario_seal.json").unlink()
    seal(where)
    panel = Panel(("RENAMED", *PANEL.symbols[1:]), (ids[0], "ENSG99999999999", *ids[2:]))
    sections = [tiny_section(f"{patient}1", f"{patient}y", seed) for seed, patient in enumerate(SIDES)]
    corpus = write_corpus(tmp_path / "corpus", sections, panel=panel,
                          split={f"{name}y": side for name, side in SIDES.items()})  # fmt: skip
    run, state, said = begun(config_of(source), corpus)
    assert "11 of 12 genes matched (1 by Ensembl id); 1 new (GENE1); 1 of the checkpoint's dropped (GENE1)" in said[0]
    assert "though of a known symbol: GENE1 is ENSG99999999999" in said[1]
    assert Provenance.from_json(run.provenance.to_json(), "").panel.ensembl == panel.ensembl


def test_on_its_own_corpus_it_starts_at_the_loss_that_the_checkpoint_had(tiny_run, tiny_corpus):
    run, state, said = begun(config_of(tiny_run), tiny_corpus)
    built, theirs, calibration = stored(tiny_run, tiny_corpus)
    assert "12 of 12 genes matched; 0 new; 0 of the checkpoint's dropped" in said[0]
    loss = make_loss(run.built, run.mesh)

    def nats(parameters) -> float:
        sums = [loss(parameters, calibration, to_devices(batch, run.mesh)) for batch in windows(run)]
        return sum(float(one.total_nats + one.gene_nats) for one in sums) / sum(float(one.detections) for one in sums)

    assert nats(jax.device_get(state.parameters)) == pytest.approx(nats(theirs), abs=2e-3)
    equal(of_genes_known(state.parameters), of_genes_known(theirs))


def test_a_frozen_trunk_keeps_its_bits_while_the_tables_move(tiny_run, tiny_corpus, other_corpus, tmp_path):
    config = config_of(tiny_run, "gene_tables")
    run, state, _ = begun(config, other_corpus)
    before = jax.device_get(state.parameters)
    after = train(config, other_corpus, tmp_path / "run", silent)
    assert int(after.step) == 4
    equal(trunk(jax.device_get(after.parameters)), trunk(before))
    moved = np.abs(np.asarray(after.parameters["gene_table"]) - before["gene_table"])[:11].max(1)
    assert (moved > 0).all() and np.asarray(after.parameters["total_bias"]) != before["total_bias"]
    assert (np.asarray(after.parameters["gene_bias"]) != before["gene_bias"])[:11].all()
    of_tables = 2 * sum(before[name].size for name in ("gene_table", "gene_bias", "total_bias"))
    moments = sum(leaf.size for leaf in jax.tree.leaves(after.optimiser) if leaf.size > 1)
    assert moments <= of_tables  # none for the trunk


@pytest.mark.slow
@pytest.mark.parametrize(("content", "at_most"), [({}, 0.55), (CONTENT, 0.8)])
def test_a_frozen_trunk_has_no_gradients_of_its_weights(tiny_corpus, content, at_most):
    """By what XLA counts in the compiled step, one layer so that its loop counts once; and MFU is told so."""
    told, counted = [], []
    for trained in ("all", "gene_tables"):
        config = config_of("nothing", trained, data=content, model={"layers": 1, "width": 96, "mlp_width": 384})
        run = Run.of(config, tiny_corpus)
        program = run.train_step().lower(run.abstract, run.abstract_batch).compile()
        counted.append(program.cost_analysis()["flops"])
        told.append(step_flops(config, run.layout).total)
    assert counted[1] < at_most * counted[0] and told[1] < at_most * told[0]


@pytest.mark.slow
def test_other_bins_and_windows_run_from_the_same_checkpoint(tiny_run, tiny_corpus, tmp_path):
    data = {"bin_um": 36.0, "bin_mixture": ((36.0, 1.0), (18.0, 1.0)), "window_um": 108.0, "rows": 2}
    state = train(config_of(tiny_run, data=data), tiny_corpus, tmp_path / "run", silent)
    assert int(state.step) == 4 and int(state.health.skipped) == 0
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.provenance(4).bin_um == 36.0


@pytest.mark.slow
def test_genes_are_weighed_anew(tiny_run, other_corpus, tmp_path):
    """By the shares of the run's own tissue, on its panel, whatever the checkpoint was trained with."""
    weighing = {"rare_gene_weight": 0.5}
    run, state, _ = begun(config_of(tiny_run, model=weighing), other_corpus)
    assert state.calibration["gene_weight"].shape == state.parameters["gene_bias"].shape
    shares = gene_shares(list(run.split.train), len(other_corpus.panel))
    weight_G = np.asarray(state.calibration["gene_weight"])[: len(shares)]
    np.testing.assert_allclose(weight_G * shares**0.5, (weight_G * shares**0.5)[0], rtol=1e-4)
    train(config_of(tiny_run, model=weighing), other_corpus, tmp_path / "weighed", silent)
    _, state, _ = begun(config_of(tmp_path / "weighed"), other_corpus)
    assert "gene_weight" not in state.calibration


def test_the_running_mean_is_what_it_starts_from(content_run, tiny_corpus):
    config = config_of(content_run, data=CONTENT, model={"tie_genes": False}, train={"ema_decay": 0.9})
    _, state, _ = begun(config, tiny_corpus)
    with Checkpoints(content_run) as checkpoints:
        trained = checkpoints.restore(4, Run.of(config, tiny_corpus).abstract)
    equal(of_genes_known(state.parameters), of_genes_known(trained.average))
    equal(state.average, state.parameters)
    assert (np.asarray(trained.average["gene_table"]) != trained.parameters["gene_table"]).any()


@pytest.mark.slow
def test_tables_of_contents_are_matched_too_and_dropped_where_nothing_reads_them(
    content_run, tiny_corpus, other_corpus
):
    _, theirs, _ = stored(content_run, tiny_corpus)
    _, state, _ = begun(config_of(content_run, data=CONTENT, model={"tie_genes": False}), other_corpus)
    mine, old = at_old(second_panel())
    np.testing.assert_array_equal(np.asarray(state.parameters["bin_encoder"]["gene_table"])[mine],
                                  theirs["bin_encoder"]["gene_table"][old])  # fmt: skip
    _, state, said = begun(config_of(content_run, model={"tie_genes": False}), other_corpus)
    assert "gene_table" not in state.parameters["bin_encoder"]
    assert "contents of bins are not read here: bin_encoder.content_depth, bin_encoder.content_in" in said[-1]


@pytest.mark.slow
def test_a_checkpoint_that_never_read_contents_learns_to(tiny_run, tiny_corpus):
    run, state, said = begun(config_of(tiny_run, data=CONTENT), tiny_corpus)
    start_of_its_own = run.built.initialise(run.config.train.seed, run.mesh)[0]["bin_encoder"]
    for name in ("content_in", "content_total"):
        np.testing.assert_array_equal(state.parameters["bin_encoder"][name], start_of_its_own[name])
        assert f"bin_encoder.{name}" in said[-1]
    assert "the checkpoint never read contents of bins: " in said[-1] and said[-1].endswith(" begin at random")


def test_what_it_cannot_start_from_is_refused(tiny_run, tiny_corpus, other_corpus, tmp_path):
    other = Panel(tuple(f"OTHER{gene}" for gene in range(12)))
    sections = [tiny_section(f"{patient}1", f"{patient}y", seed) for seed, patient in enumerate(SIDES)]
    unknown = write_corpus(tmp_path / "unknown", sections, panel=other,
                           split={f"{name}y": side for name, side in SIDES.items()})  # fmt: skip
    for words, config, corpus in (
        (("model.width = 32, now 64", "data.patch_px = 9, now 12"),
         config_of(tiny_run, model={"width": 64}, data={"patch_px": 12}), other_corpus),
        (("none of the corpus's 12 genes (OTHER0", "12 others (GENE0"), config_of(tiny_run), unknown),
        (("never read contents", "start.trained=all"), config_of(tiny_run, "gene_tables", data=CONTENT), tiny_corpus),
        (("no such folder", "(15, 30)"), config_of(tiny_run / "checkpoints/7"), tiny_corpus),
        (("no such workdir",), config_of(tmp_path / "nowhere"), tiny_corpus),
        (("$TARIO_NOT_SET", "environment variable"), config_of("$TARIO_NOT_SET/run"), tiny_corpus),
    ):  # fmt: skip
        refused(lambda config=config, corpus=corpus: begun(config, corpus), *words)
    refused(lambda: override(tiny_config(), {"start.trained": "gene_tables"}), "start.trained", "start.checkpoint")


def test_a_damaged_start_is_refused_by_its_step_and_passed_over_in_a_workdir(tiny_run, tiny_corpus, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(tiny_run, workdir)
    seal = workdir / "checkpoints/30/tario_seal.json"
    seal.write_text(seal.read_text()[:50])
    refused(lambda: begun(config_of(workdir / "checkpoints/30"), tiny_corpus), "is absent or torn", "(15, 30)")
    _, _, said = begun(config_of(workdir), tiny_corpus)
    assert "step 15 is used" in said[0] and "starts from step 15" in said[1]


def test_patients_that_the_checkpoint_has_seen_are_not_held_out(tiny_run, tmp_path):
    sections = [tiny_section(f"{patient}9", patient, seed + 70) for seed, patient in enumerate(SIDES)]
    sides = SIDES | {"A": "held_out", "E": "held_out"}
    leaky = write_corpus(tmp_path / "leaky", sections, split=sides)
    refused(lambda: begun(config_of(tiny_run), leaky), "patients that are held out now: A, E", "side of training")
    fair = write_corpus(tmp_path / "fair", sections, split=SIDES)
    begun(config_of(tiny_run), fair)


def test_one_gene_of_the_checkpoint_is_one_of_the_runs():
    theirs = Panel(("TP53", "EGFR"), ("ENSG00000141510", ""))
    ours = Panel(("TP53", "P53", "EGFR"), ("", "ENSG00000141510", ""))
    match = fine_tune._each_once(match_genes(ours, theirs), ours)
    assert match.position_S.tolist() == [-1, 0, 1]


def test_sections_that_the_checkpoint_was_validated_with_are_not_held_out(tiny_run, tiny_corpus):
    (validated,) = (patient for patient, side in SIDES.items() if side == "validation")
    ids = {section.patient: section.id for section in tiny_corpus.sections}
    others = tuple(ids[patient] for patient in ids if patient not in (validated, "A"))
    split = SplitConfig("section", train=others, validation=(ids["A"],), held_out=(ids[validated],))
    refused(
        lambda: begun(config_of(tiny_run, split=split), tiny_corpus), "sections that are held out now", ids[validated]
    )


def test_a_split_is_its_sections_however_it_names_them(tiny_run):
    _, step = find_checkpoint(tiny_run)
    with Checkpoints(tiny_run) as checkpoints:
        run = checkpoints.provenance(step)
    listed = SplitConfig("patient", validation=run.validation, held_out=run.held_out)
    now = dataclasses.replace(run, config=dataclasses.replace(run.config, split=listed))
    assert now.config.split != run.config.split and not refuse_other_run(run, now, step, "run")
    refused(lambda: refuse_other_run(run, dataclasses.replace(now, train=run.train[1:]), step, "run"), "another train")


def test_a_start_is_one_place_however_it_is_named(tiny_run, monkeypatch):
    _, step = find_checkpoint(tiny_run)
    with Checkpoints(tiny_run) as checkpoints:
        run = checkpoints.provenance(step)

    def started(checkpoint) -> Provenance:
        return dataclasses.replace(run, config=config_of(checkpoint))

    monkeypatch.chdir(tiny_run.parent)
    monkeypatch.setenv("RUNS", str(tiny_run.parent))
    for name in (f"{tiny_run}/", tiny_run.name, f"$RUNS/{tiny_run.name}"):
        assert not refuse_other_run(started(tiny_run), started(name), step, "run")
    refused(lambda: refuse_other_run(started(tiny_run), started("other"), step, "run"), "start.checkpoint", "other")


@pytest.mark.slow
def test_a_run_that_was_started_from_a_checkpoint_resumes_without_it(tiny_run, other_corpus, tmp_path):
    config = functools.partial(config_of, train={"steps": 4, "checkpoint_every": 2, "validate_every": 4})
    source = tmp_path / "source"
    shutil.copytree(tiny_run, source)
    unbroken = train(config(source), other_corpus, tmp_path / "unbroken", silent)

    class Killed(BaseException):
        pass

    def say(line: str) -> None:
        if line.startswith("step      3/4"):
            raise Killed

    with pytest.raises(Killed):
        train(config(source), other_corpus, tmp_path / "run", say)
    shutil.rmtree(source)
    said = []
    resumed = train(config(source), other_corpus, tmp_path / "run", said.append)
    assert "resumed at step 2 of 4" in said and not any("starts from" in line for line in said)
    equal(jax.device_get(resumed), jax.device_get(unbroken))
    with Checkpoints(tmp_path / "run") as again, Checkpoints(tmp_path / "unbroken") as once:
        assert again.provenance(4) == once.provenance(4) and again.provenance(4).started_from["step"] == 30
    for other in (config(tiny_run), config(None), config(source, "gene_tables")):
        refused(lambda other=other: train(other, other_corpus, tmp_path / "run", silent), "start.", ", now ")


@pytest.mark.slow
def test_where_a_model_comes_from_is_kept_and_reported(tiny_run, tiny_corpus, other_corpus, tmp_path):
    middle, last = tmp_path / "middle", tmp_path / "last"
    train(config_of(tiny_run), other_corpus, middle, silent)
    others = [on_second_panel(tiny_section(f"{patient}7", f"{patient}w", seed + 40), second_panel())
              for seed, patient in enumerate(SIDES)]  # fmt: skip
    corpus = write_corpus(tmp_path / "corpus", others, panel=second_panel(), kind="real",
                          split={f"{name}w": side for name, side in SIDES.items()})  # fmt: skip
    train(config_of(middle, "gene_tables"), corpus, last, silent)
    with Checkpoints(last) as checkpoints:
        found = checkpoints.provenance(4)
    assert found.trained_on == "real"
    assert [(one["run"], one["step"], one["trained_on"], one["genes"]) for one in found.starts] == [
        ("middle", 4, "real", 11), ("run", 30, "virtual", 12),
    ]  # fmt: skip
    assert found.starts[1]["corpus_seal"] == tiny_corpus.seal and found.starts[1]["panel_hash"] == PANEL.hash
    assert set(found.seen_patients) == {f"{name}{corpus}" for name in "ABCDE" for corpus in ("", "x", "w")}

    # nor may the patients that the first of them has seen be held out
    leaky = write_corpus(tmp_path / "leaky", [tiny_section(f"{patient}9", patient, seed + 70) for seed, patient in
                                              enumerate(SIDES)], split=SIDES | {"A": "held_out"})  # fmt: skip
    refused(lambda: begun(config_of(last), leaky), "patients that are held out now: A")

    report = {"trained_on": "real", "corpus_kind": "real", "split_by": "patient", "ranked_on": "training sections"}
    assert banners(report) == []
    (banner,) = banners(report | {"provenance": {"starts": found.starts}})
    assert "pretrained on virtual tissue" in banner and "run, step 30" in banner


_ON_A_MESH = """
import sys
import jax
import numpy as np
from tiny_tissue import tiny_config
from tario_jax.config import MeshConfig, StartConfig
from tario_jax.corpus.read import Corpus
from tario_jax.train.run import Run
from tario_jax.train.seal import seal
from tario_jax.train.start import start

_, corpus, checkpoint, out = sys.argv
config = tiny_config(start=StartConfig(checkpoint), model={"kv_heads": 2},
                     mesh=MeshConfig(fsdp=2, context=2, tensor=2))
run, state = start(Run.of(config, Corpus.open(corpus)), print)
assert len(state.parameters["gene_table"].sharding.device_set) == 8
assert not state.parameters["decoder"]["q"].sharding.is_fully_replicated
leaves = jax.tree.leaves_with_path((state.parameters, state.calibration))
np.savez(out, **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})
"""


@pytest.mark.slow
def test_it_starts_on_any_mesh(tiny_corpus, other_corpus, devices8, tmp_path, monkeypatch, repository):
    """Of eight devices, from a checkpoint of one: the gene tables matched to the bit, on two sides of `tensor`."""
    monkeypatch.setenv("PYTHONPATH", str(repository / "tests"))
    workdir, heads = tmp_path / "run", {"kv_heads": 2}
    train(config_of(None, model=heads), tiny_corpus, workdir, silent)
    _, state, said = begun(tiny_config(start=StartConfig(str(workdir)), model=heads), other_corpus)
    printed = devices8(_ON_A_MESH, str(other_corpus.root), str(workdir), str(tmp_path / "found.npz"))
    assert said[0] in printed
    found = np.load(tmp_path / "found.npz")
    for path, leaf in jax.tree.leaves_with_path((state.parameters, state.calibration)):
        name = jax.tree_util.keystr(path)
        if name == "[0]['total_bias']":
            np.testing.assert_allclose(found[name], leaf, rtol=1e-5)
        else:
            np.testing.assert_array_equal(found[name], leaf, err_msg=name)
