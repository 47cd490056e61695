"""What the H&E of a virtual patient can tell at best: V of a section in bulk, from the patient's own cells.

V is the expected composition given all that is drawn; a probe of it stands for the AUROC that no model of the H&E can
beat by more than chance. It is kept beside the corpus, outside of its seal.

Axes: P patients, G genes.
"""

import concurrent.futures
import functools
import hashlib
import io
import multiprocessing
from collections.abc import Callable, Sequence

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.read import Corpus
from tario_jax.virtual.patients import draw_patient, patient_number
from tario_jax.virtual.regions import region_of
from tario_jax.virtual.section import Settings, bulk_rates
from tario_jax.virtual.version import VERSION

FOLDER = "reachable"
_AT_ONCE = 32  # patients of a file


def reachable_bulk(corpus: Corpus, patients: Sequence[str], *, workers: int = 2,
                   say: Callable[[str], None] = print) -> np.ndarray:  # fmt: skip
    """log1p of 10,000 times V's composition of all of each patient's sections, float32 [P, G].

    Continues what was stopped. Raises `InputError` for a corpus of real tissue, where nobody knows V.
    """
    if corpus.kind != "virtual":
        raise InputError(f"corpus {corpus.root}: is of real tissue, of which nobody knows what the H&E can tell; leave "
                         "out --reachable")  # fmt: skip
    made = layout.read_json(corpus.root / "ingest.json")["source"]
    if made["simulator"].split()[0] != str(VERSION):
        raise InputError(f"corpus {corpus.root}: was made by simulator {made['simulator'].split()[0]}, and this is "
                         f"{VERSION}: its V is another; simulate it again")  # fmt: skip
    settings = Settings(**made["settings"])
    regions: dict[str, list[str]] = {}
    for section in corpus.sections:
        regions.setdefault(section.patient, []).append(section.id.rpartition("_")[2])
    jobs = [(name, tuple(sorted(regions[name]))) for name in patients]
    found: list[np.ndarray] = []
    blocks = [jobs[first : first + _AT_ONCE] for first in range(0, len(jobs), _AT_ONCE)]
    one = functools.partial(_of_patient, settings=settings)
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for number, block in enumerate(blocks):
            place = corpus.root / FOLDER / f"{_key(block, settings)}.npy"
            if not place.exists():
                values = np.stack(list(pool.map(one, block)))
                memory = io.BytesIO()
                np.save(memory, values)
                place.write(memory.getvalue())
                say(f"reachable: {min((number + 1) * _AT_ONCE, len(jobs))}/{len(jobs)} patients")
            found.append(np.load(io.BytesIO(place.read())))
    return np.concatenate(found)


def _key(block: list[tuple[str, tuple[str, ...]]], settings: Settings) -> str:
    return hashlib.sha256(repr((VERSION, settings, block)).encode()).hexdigest()[:16]


def _of_patient(job: tuple[str, tuple[str, ...]], *, settings: Settings) -> np.ndarray:
    name, regions = job
    patient = draw_patient(patient_number(name), settings.seed)
    total_G = sum(bulk_rates(patient, region_of(patient, region, settings.section_um), settings)[1]
                  for region in regions)  # fmt: skip
    return np.log1p(1e4 * total_G / total_G.sum()).astype(np.float32)
