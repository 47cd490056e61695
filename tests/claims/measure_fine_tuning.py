"""What a start from a checkpoint is worth: `measure_fine_tuning.py FOLDER OUT.json`; FOLDER holds corpus/, run/, few/.

run/ is the quickstart's config at 36 µm, trained on corpus/; few/ holds few patients, others than those. Losses are
nats per detection, on fixed windows of validation patients.

* New genes: every third gene is taken for one that the checkpoint does not know. The loss of step 0 with the rows that
  they get, with three other rows, and with those that the checkpoint has learnt.
* Frozen trunk: best time of a step, by turns with that of a step of all parameters.
* Bins of 18 µm, on the few patients: the loss after some steps from the checkpoint (all parameters at a lower rate; a
  frozen trunk), and from the seed.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tario_jax.config import Config, StartConfig
from tario_jax.config_files import load_config, override
from tario_jax.corpus.read import Corpus
from tario_jax.train import fine_tune
from tario_jax.train.run import Run
from tario_jax.train.start import start
from tario_jax.train.state import TrainState, to_devices
from tario_jax.train.validation import Validation

STEPS = (0, 20, 60)
ROUNDS = 10
SLOW_RATE = 2e-4  # of all parameters from a checkpoint: few patients are soon known by heart


def begun(run: Run) -> TrainState:
    return start(run, lambda line: None)[1]


def validation(run: Run) -> Validation:
    return Validation(run.config, run.split.validation, run.layout, run.built, run.mesh, lambda: None)


def new_genes(run: Run) -> dict[str, float]:
    loss, genes = validation(run), len(run.provenance.panel)
    found = {"learnt": loss(begun(run))}
    new = np.arange(0, genes, 3)
    matched = fine_tune.match_genes

    def as_new(ours, theirs):
        match = matched(ours, theirs)
        match.position_S[new] = -1
        return match

    fine_tune.match_genes = as_new
    state = begun(run)
    fine_tune.match_genes = matched
    known = np.setdiff1d(np.arange(genes), new)
    table = np.asarray(state.parameters["gene_table"])
    drawn = np.asarray(run.built.initialise(1, run.mesh)[0]["gene_table"])[new]
    rows = {"mean by frequency": table[new], "mean": np.broadcast_to(table[known].mean(0), table[new].shape),
            "zero": np.zeros_like(table[new]), "random": drawn}  # fmt: skip
    for name, row in rows.items():
        changed = table.copy()
        changed[new] = row
        placed = jax.device_put(changed, state.parameters["gene_table"].sharding)
        found[name] = loss(state._replace(parameters={**state.parameters, "gene_table": placed}))
    return found


def frozen(config: Config, corpus: Corpus) -> dict[str, float]:
    """Best seconds of a step."""
    steps, seconds = {}, {}
    for trained in ("all", "gene_tables"):
        run = Run.of(override(config, {"start.trained": trained}), corpus)
        batch = to_devices(next(run.batches(0, 0, lambda line: None)), run.mesh)
        program = run.train_step().lower(run.abstract, run.abstract_batch).compile()
        steps[trained], seconds[trained] = [program, begun(run), batch], []
    for _ in range(ROUNDS):
        for trained, (program, state, batch) in steps.items():
            began = time.monotonic()
            steps[trained][1], metrics = program(state, batch)
            jax.block_until_ready(metrics)
            seconds[trained].append(time.monotonic() - began)
    return {trained: min(of_steps) for trained, of_steps in seconds.items()}


def losses(config: Config, corpus: Corpus) -> list[float]:
    """After STEPS steps."""
    run = Run.of(config, corpus)
    state, loss, step, batches = begun(run), validation(run), run.train_step(), run.batches(0, 0, lambda line: None)
    found = []
    for t in range(max(STEPS) + 1):
        if t in STEPS:
            found.append(loss(state))
        state, _ = step(state, to_devices(next(batches), run.mesh))
    return found


def main(folder: Path, out: Path) -> None:
    corpus = Corpus.open(folder / "corpus")
    steps = {"train.steps": str(max(STEPS) + 1), "train.validation_rows": "64", "train.calibration_rows": "32"}
    config = override(load_config("configs/quickstart.py"), steps)
    config = dataclasses.replace(config, start=StartConfig(str(folder / "run")))
    rows = new_genes(Run.of(config, corpus))
    times = {name: frozen(override(config, {"data.groups": groups}), corpus)
             for name, groups in (("contents", "((1,0.7),(4,0.2),(16,0.1))"), ("one_shot", "((1,1.0),)"))}  # fmt: skip
    fine = override(config, {"data.bin_um": "18.0"})
    few, seed = Corpus.open(folder / "few"), dataclasses.replace(fine, start=StartConfig())
    slow, frozen_trunk = {"optim.learning_rate": str(SLOW_RATE)}, {"start.trained": "gene_tables"}
    by_steps = {"checkpoint": losses(override(fine, slow), few), "frozen": losses(override(fine, frozen_trunk), few),
                "seed": losses(seed, few)}  # fmt: skip
    lines = ["loss at step 0 with a third of the genes new, by the rows that they start with (learnt: none is new)"]
    lines += [f"  {name:<20} {nats:.4f}" for name, nats in rows.items()]
    lines += ["best seconds of a step", f"  {'':<20} {'all':>8} {'frozen':>8} {'share':>6}"]
    lines += [f"  {name:<20} {of['all']:8.3f} {of['gene_tables']:8.3f} {of['gene_tables'] / of['all']:6.2f}"
              for name, of in times.items()]  # fmt: skip
    lines += [
        "loss at bins of 18 µm on few other patients after so many steps",
        f"  {'from':<20} " + " ".join(f"{t:>7}" for t in STEPS),
    ]
    lines += [f"  {name:<20} " + " ".join(f"{nats:7.4f}" for nats in of) for name, of in by_steps.items()]
    table = "\n".join(lines) + "\n"
    print(table)
    gain = min(by_steps["seed"]) - min(by_steps["checkpoint"])
    out.write_text(json.dumps({"rows": rows, "seconds": times, "losses": by_steps, "gain": gain, "table": table}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
