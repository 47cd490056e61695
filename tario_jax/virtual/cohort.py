"""A cohort of virtual patients as a corpus: many processes, section by section, resumable."""

import concurrent.futures
import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tario_jax.config import SourceConfig
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.write import begin_corpus, seal_corpus, section_is_sealed, write_section
from tario_jax.virtual.genes import virtual_panel
from tario_jax.virtual.patients import cohort_split, patient_number
from tario_jax.virtual.section import simulate_section


def simulate_cohort(config: SourceConfig, root: Path, say: Callable[[str], None] = print) -> Corpus:
    """Simulates the patients of `config` into a corpus at `root`, with its split; continues what was stopped.

    Held-out and validation patients carry their truth, training patients do not: nothing that trains can see it.
    """
    panel = virtual_panel()
    split = cohort_split(config.train_patients, config.validation_patients, config.held_out_patients)
    begin_corpus(root, panel, "virtual", {"virtual_seed": config.seed, "section_um": config.section_um})
    todo = [patient for patient in split if not section_is_sealed(root, section_name(patient))]
    if len(todo) < len(split):
        say(f"simulate: {len(split) - len(todo)} of {len(split)} patients are there already")
    if (root / "corpus.json").exists():
        corpus = Corpus.open(root)
        if {section.patient for section in corpus.sections} == set(split):
            return corpus  # as it is, with a split.tsv that its user may have edited
        (root / "corpus.json").unlink()  # a cohort of another size: it is not sealed meanwhile
    began = time.monotonic()
    one = functools.partial(_simulate, root=root, seed=config.seed, section_um=config.section_um)
    jobs = [(patient, split[patient] != "train") for patient in todo]
    if config.workers == 1 or len(jobs) < 2:
        done = map(one, jobs)
        _report(done, len(jobs), began, say)
    else:
        # spawned, since a fork of a process with running threads may hang; one numerical thread a worker
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(config.workers, context, initializer=_start_worker) as pool:
            _report(pool.map(one, jobs), len(jobs), began, say)
    return seal_corpus(root, panel, "virtual", dict(split))


def section_name(patient: str) -> str:
    return f"{patient}_a"


def _simulate(job: tuple[str, bool], *, root: Path, seed: int, section_um: float) -> str:
    patient, with_truth = job
    section = simulate_section(patient_number(patient), seed=seed, section_um=section_um, with_truth=with_truth)
    write_section(root, virtual_panel(), "virtual", section)
    return section.section_id


def _start_worker() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent is killed: it would else go on writing beside the run that continues."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _report(done, number: int, began: float, say: Callable[[str], None]) -> None:
    """Says how far it is, about ten times in all."""
    every = max(1, number // 10)
    for count, _ in enumerate(done, 1):
        if count % every == 0 or count == number:
            seconds = time.monotonic() - began
            left = seconds / count * (number - count)
            say(f"simulate: {count}/{number} sections  {seconds / count:.2f} s each  ETA {left:.0f} s")
