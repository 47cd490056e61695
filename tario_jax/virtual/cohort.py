"""A cohort of virtual patients as a corpus: many processes, section by section, resumable."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError, SourceConfig
from tario_jax.corpus.layout import read_json, sealed_names
from tario_jax.corpus.one_writer import one_writer
from tario_jax.corpus.place import Place
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import read_split
from tario_jax.corpus.write import begin_corpus, known_seals, seal_corpus, sealed_sections, write_section
from tario_jax.virtual.diagnoses import COHORTS
from tario_jax.virtual.genes import Program, program
from tario_jax.virtual.genotype import MUTATIONS
from tario_jax.virtual.kinds import STATES, TYPES
from tario_jax.virtual.patients import TRAITS, Side, cohort_split, patient_number
from tario_jax.virtual.regions import REGION_NAMES, names_of_regions
from tario_jax.virtual.section import Settings, simulate_section
from tario_jax.virtual.version import VERSION, checksum


def settings_of(config: SourceConfig) -> Settings:
    """The simulator's settings as a config names them."""
    return Settings(config.seed, config.section_um, config.depth, config.panel)


def split_of(config: SourceConfig, held_out_after: int | None = None) -> dict[str, Side]:
    """The side of each patient id. held_out_after: only held-out patients, beyond the first so many."""
    if held_out_after is None:
        return cohort_split(config.train_patients, config.validation_patients, config.held_out_patients, config.cohorts)
    further = cohort_split(0, 0, held_out_after + config.held_out_patients, config.cohorts)
    return dict(list(further.items())[held_out_after:])


def sections_of(config: SourceConfig, held_out_after: int | None = None) -> dict[str, tuple[str, str]]:
    """The cohort's sections by id, each (patient id, region). Raises `InputError` where a patient would have none."""
    unknown = sorted(set(config.regions) - set(REGION_NAMES))
    if unknown or not {"core", "border"} & set(config.regions):
        raise InputError(f"source.regions is {config.regions}; expected core, border, or both, and large if wanted")
    return {
        f"{patient}_{region}": (patient, region)
        for patient in split_of(config, held_out_after)
        for region in names_of_regions(patient_number(patient))
        if region in config.regions
    }


def classes_of(symbols: Sequence[str]) -> np.ndarray:
    """Class of each gene, str; "" for one that the virtual panel does not hold."""
    whole = program()
    position_G = whole.panel.positions(tuple(symbols))
    return np.where(position_G >= 0, whole.class_G[position_G], "")


GENE_TABLE = "virtual_genes.tsv"
"""Beside the panel of a virtual corpus, outside of its seal: nothing that trains reads it."""
_IN_TYPE = 0.2  # of a gene's largest share of a cell's RNA: the types that it is for lie above it


def gene_table(program: Program) -> str:
    """What each gene of the panel does, as TSV with a line a gene, in panel order.

    Columns: symbol; class; where (cell types, `type:COHORT` for one cancer type only, or `all`); follows (what its log
    rate changes with, each `name:change`, by unit of a state or a trait, or where mutated or of that sex);
    patient_sd (of the patient's own log effect); detected (share of its transcripts that the assay finds).
    """
    share_CxTxG = program.share_CxTxG
    inside_CxTxG = share_CxTxG > _IN_TYPE * share_CxTxG.max((0, 1))
    lines = ["symbol\tclass\twhere\tfollows\tpatient_sd\tdetected"]
    for gene, (symbol, name) in enumerate(zip(program.panel.symbols, program.class_G, strict=True)):
        changes = {
            **({STATES[program.state_G[gene]]: program.loading_G[gene]} if program.state_G[gene] >= 0 else {}),
            **dict(zip(TRAITS, program.trait_loading_RxG[:, gene], strict=True)),
            **dict(zip(MUTATIONS, program.mutation_loading_MxG[:, gene], strict=True)),
        }
        follows = [f"{driver}:{change:+.2f}" for driver, change in changes.items() if change]
        follows += {1: ["female"], -1: ["male"], 0: []}[int(program.sex_G[gene])]
        where = "all" if inside_CxTxG[:, :, gene].all() else ",".join(_where(inside_CxTxG[:, :, gene]))
        lines.append(f"{symbol}\t{name}\t{where}\t{','.join(follows)}\t{program.patient_sd_G[gene]:.2f}\t"
                     f"{program.detected_G[gene]:.2f}")  # fmt: skip
    return "\n".join(lines) + "\n"


def _where(inside_CxT: np.ndarray) -> list[str]:
    found = []
    for kind, inside_C in zip(TYPES, inside_CxT.T, strict=True):
        cohorts = [cohort for cohort, inside in zip(COHORTS, inside_C, strict=True) if inside]
        found += [kind] if inside_C.all() else [f"{kind}:{cohort}" for cohort in cohorts]
    return found


def simulate_cohort(config: SourceConfig, root: Place | Path, say: Callable[[str], None] = print,
                    part: tuple[int, int] = (1, 1), *, held_out_after: int | None = None) -> Corpus | None:  # fmt: skip
    """Simulates the patients of `config` into a corpus at `root`, with its split; continues what was stopped.

    part: (k, n) makes every n-th patient from the k-th on, as one of n jobs on machines that share `root`; None comes
    back, and no corpus seal, while patients of other parts are missing. held_out_after: no patients but held-out ones,
    beyond the first so many: a further test set, of which no model has seen anyone. Every section carries the cells
    that its truth is computed from; nothing that trains reads them.
    """
    root, split = Place(root), split_of(config, held_out_after)
    sections = sections_of(config, held_out_after)
    with one_writer(root, shared=part != (1, 1)):
        return _simulated(config, root, split, sections, part, say)


def _simulated(config: SourceConfig, root: Place, split: dict[str, Side], sections: dict[str, tuple[str, str]],
               part: tuple[int, int], say: Callable[[str], None]) -> Corpus | None:  # fmt: skip
    settings = settings_of(config)
    panel = settings.genes.panel
    begin_corpus(root, panel, "virtual", _source_of(settings))
    if not (root / GENE_TABLE).exists():
        (root / GENE_TABLE).write(gene_table(settings.genes).encode())
    mine = set(list(split)[part[0] - 1 :: part[1]])
    wanted = [name for name, (patient, _) in sections.items() if patient in mine]
    sealed = set(sealed_names(root))
    todo = [name for name in wanted if name not in sealed]
    if more := sorted(sealed - set(sections)):  # of all that is there the corpus would be made
        raise InputError(f"corpus {root}: holds {len(more)} sections that this cohort has not ({more[0]!r} …); use "
                         "another folder, ask for at least as many patients and regions, or remove them from "
                         f"{root / 'sections'}")  # fmt: skip
    if len(todo) < len(wanted):
        say(f"simulate: {len(wanted) - len(todo)} of {len(wanted)} sections are there already")
    if (root / "corpus.json").exists():
        corpus = Corpus.open(root)
        if {section.id for section in corpus.sections} == set(sections) <= set(sealed_names(root)):
            return corpus  # as it is, with a split.tsv that its user may have edited
        sealed_sections(root, known_seals(root))  # altered ones are refused, not sealed anew
        (root / "corpus.json").remove()  # a smaller cohort grows: it is not sealed meanwhile
    began = time.monotonic()
    one = functools.partial(_simulate, root=root, settings=settings)
    jobs = [sections[name] for name in todo]
    if config.workers == 1 or len(jobs) < 2:
        _report(map(one, jobs), len(jobs), began, say)
    else:
        # spawned, since a fork of a process with running threads may hang
        context = multiprocessing.get_context("spawn")
        with (
            _one_numerical_thread(),
            concurrent.futures.ProcessPoolExecutor(config.workers, context, initializer=_start_worker) as pool,
        ):
            _report(pool.map(one, jobs), len(jobs), began, say)
    missing = len(set(sections) - set(sealed_names(root)))
    if missing:
        say(f"simulate: part {part[0]}/{part[1]} is done; {missing} sections of other parts are not there yet")
        return None
    return seal_corpus(root, panel, "virtual", _reviewed(root, dict(split)))


def _reviewed(root: Place, split: dict[str, str]) -> dict[str, str]:
    """The sides of a cohort: of those whom split.tsv names, as its user may have edited it."""
    note = root / "split.tsv"
    if not note.exists():
        return split
    side_of = {patient: side for side, patients in read_split(note).items() for patient in patients}
    return split | {patient: side for patient, side in side_of.items() if patient in split}


def holds_cohort(root: Place | Path, config: SourceConfig) -> bool:
    """Whether a corpus is sealed there, of all patients of `config` and no others, as this simulator makes them now."""
    root = Place(root)
    if not (root / "corpus.json").exists():
        return False
    begun = read_json(root / "ingest.json").get("source")
    return begun == _source_of(settings_of(config)) and set(sealed_names(root)) == set(sections_of(config))


def _source_of(settings: Settings) -> dict[str, Any]:
    """What a corpus notes of where its patients come from."""
    return {"simulator": f"{VERSION} {checksum()[:16]}", "settings": dataclasses.asdict(settings)}


def _simulate(job: tuple[str, str], *, root: Place, settings: Settings) -> str:
    patient, region = job
    section = simulate_section(patient_number(patient), region, settings)
    write_section(root, settings.genes.panel, "virtual", section)
    return section.section_id


@contextlib.contextmanager
def _one_numerical_thread():
    """For the processes that are started meanwhile: numpy reads these when it is imported, before any initializer."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
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
