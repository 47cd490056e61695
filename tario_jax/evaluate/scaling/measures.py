"""What is compared of a run: a score table as few arrays, and the numbers that are held against sizes.

Genes are ranked once for all runs (`Ranking`): a run's own training sections would rank them a little differently.
"""

import dataclasses

import numpy as np

from tario_jax.evaluate.bulk import MIN_PATIENTS, log_cpm
from tario_jax.evaluate.intervals import weighted_mean
from tario_jax.evaluate.metrics import ceiling, mean_defined, pearson_by_gene
from tario_jax.evaluate.score_file import ScoreTable

FORMS = ("counts", "composition", "residual")
TOP, ALL = "top", "all"


@dataclasses.dataclass(frozen=True)
class RunScores:
    """Of one run at one side of bins; S held-out sections, G genes. Of a table, what the model scored, and no more."""

    bin_um: float
    read_um: float
    corpus_seal: str
    checkpoint: str
    ranked_on: str  # "training sections" or "held-out sections"
    settings: str  # of the evaluation
    sections: tuple[str, ...]
    patients: tuple[str, ...]  # of the sections
    symbols: tuple[str, ...]
    gene_class: tuple[str, ...]
    order: np.ndarray  # ranked genes, highest Moran's I first
    ceiling_G: np.ndarray  # the largest r that any prediction reaches against the counts
    r_SxG: dict[str, np.ndarray]  # by form
    nats_SxK: np.ndarray  # K: of genes, of totals; per detection
    detections_S: np.ndarray
    bulk_r: dict[str, float | None]  # "counts" and "log_cpm", within cohorts; None: no cohort of ten patients

    @classmethod
    def of(cls, table: ScoreTable) -> "RunScores":
        r = {form: table.r["model", form] for form in FORMS if ("model", form) in table.r}
        nats_SxK = np.stack([table.gene_nats_S, table.total_nats_S], 1)
        nats_SxK[table.detections_S == 0] = 0.0  # nothing a detection, where there is none
        return cls(table.bin_um, table.read_um, table.corpus_seal, table.checkpoint, table.ranked_on,
                   table.settings, table.sections, table.patients, table.symbols, table.gene_class, table.order,
                   ceiling(table.rho_SxG), r, nats_SxK, table.detections_S, _bulk(table))  # fmt: skip

    def nats(self, weights_BxS: np.ndarray) -> np.ndarray:
        """Nats per detection of genes and of totals, with sections drawn so often, [B, K]."""
        detections_Sx1 = self.detections_S[:, None]
        return (weights_BxS @ (self.nats_SxK * detections_Sx1)) / (weights_BxS @ detections_Sx1)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The genes that means are taken over, for all runs alike."""

    run: str  # whose training sections ranked them
    order: np.ndarray  # [ranked genes]
    top: np.ndarray  # the first of them

    @classmethod
    def of(cls, run: str, scores: RunScores, top_genes: int) -> "Ranking":
        return cls(run, scores.order, scores.order[:top_genes])

    def genes(self, which: str) -> np.ndarray:
        return self.top if which == TOP else self.order


def measure(scores: RunScores, ranking: Ranking, validation_nats: float | None) -> dict[str, float | None]:
    """{quantity: value}: losses in nats per detection; r/<form>/top and r/<form>/all, means over sections, then genes;
    ceiling/top and ceiling/all; bulk_r/<form>. None: not known."""
    once_1xS = np.ones((1, len(scores.sections)))
    gene, total = map(float, scores.nats(once_1xS)[0])
    values = {"nats": gene + total, "gene_nats": gene, "total_nats": total, "validation_nats": validation_nats}
    for which in (TOP, ALL):
        genes = ranking.genes(which)
        values |= {f"r/{form}/{which}": None for form in FORMS}
        values |= {f"r/{form}/{which}": float(top_r(scores, form, genes, once_1xS)[0]) for form in scores.r_SxG}
        values[f"ceiling/{which}"] = float(mean_defined(scores.ceiling_G[genes]))
    return values | {f"bulk_r/{form}": value for form, value in scores.bulk_r.items()}


def top_r(scores: RunScores, form: str, genes: np.ndarray, weights_BxS: np.ndarray) -> np.ndarray:
    """Mean r over `genes` with sections drawn so often, [B]; undefined left out."""
    return mean_defined(weighted_mean(scores.r_SxG[form][:, genes], weights_BxS).T)


def _bulk(table: ScoreTable) -> dict[str, float | None]:
    """Mean over genes of r across the patients of a cohort, mean over the cohorts of at least ten."""
    cohort_P = np.asarray(table.bulk_cohorts)
    rows = [np.flatnonzero(cohort_P == cohort) for cohort in sorted(set(table.bulk_cohorts))]
    rows = [own for own in rows if len(own) >= MIN_PATIENTS]
    forms = {
        "counts": (table.bulk_measured_PxG, table.bulk_predicted_PxG),
        "log_cpm": (log_cpm(table.bulk_measured_PxG, table.bulk_measured_total_P),
                    log_cpm(table.bulk_predicted_PxG, table.bulk_predicted_total_P)),
    }  # fmt: skip
    return {
        form: float(np.mean([mean_defined(pearson_by_gene(x[own], p[own])) for own in rows])) if rows else None
        for form, (x, p) in forms.items()
    }
