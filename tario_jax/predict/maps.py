"""Gene maps: predicted rates of every gene of the model at places of one section."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.panel import Panel
from tario_jax.predict.gene_validation import SPLIT_BY_SECTION, GeneValidation
from tario_jax.predict.same_places import same_places
from tario_jax.predict.whole_output import refuse_full, whole_output
from tario_jax.whole_file import write_whole

FORMAT_VERSION = 1
ONE_SHOT = "one-shot"  # from the H&E, all at once
VIRTUAL_BANNER = (
    "This model was trained on virtual tissue and knows no biology: its maps of real tissue show that the software "
    "runs, nothing else."
)


def banner_of(trained_on: str, tissue: str) -> str:
    """What is said of all that a model of this kind of tissue predicts on that kind; empty where nothing need be."""
    return VIRTUAL_BANNER if trained_on == "virtual" and tissue == "real" else ""


@dataclasses.dataclass(frozen=True)
class GeneMaps:
    """Expected detections of every gene at N places (bins or spots) of a section.

    x_um_N, y_um_N: centres in the section's frame; size_um: side of the square that a place stands for (for a spot:
    of the square of the same area); he_um_per_px: of the full-resolution H&E.
    """

    section: str
    panel: Panel
    x_um_N: np.ndarray
    y_um_N: np.ndarray
    size_um: float
    rates_NxG: np.ndarray  # float32, expected detections per place
    he_um_per_px: float
    trained_on: str  # virtual or real
    tissue: str  # kind of the tissue that was predicted: virtual or real
    names_N: tuple[str, ...] = ()  # of the places, where the platform names its spots
    he_origin_px: tuple[float, float] = (0.0, 0.0)  # where the section's H&E begins in the image that it was cut from
    decoding: str = ONE_SHOT  # how the rates came about
    between_NxG: np.ndarray | None = None  # variance of the rates between samples, which is not that of counts
    validation: GeneValidation | None = None  # how well the model predicted each gene of held-out patients

    def count_spread(self) -> tuple[float, float]:
        """(bursts, uncertain), as fitted to places of this side in validation sections: see `GeneValidation`.

        Raises `InputError` where they are not known.
        """
        if self.validation is None:
            raise InputError(f"how far counts scatter is not known: these rates were validated on {self.validated_on}")
        return self.validation.count_spread(self.size_um)

    def count_variance(self) -> np.ndarray:
        """Of a count at each place, float32 [N, G]: that of a negative binomial around its rate."""
        bursts, uncertain = self.count_spread()
        return self.rates_NxG * np.float32(1 + bursts) + np.float32(uncertain) * self.rates_NxG**2

    @property
    def banner(self) -> str:
        return banner_of(self.trained_on, self.tissue)

    def gene(self, symbol: str) -> np.ndarray:
        """Rates of one gene, float32 [N]."""
        if symbol not in self.panel.index:
            raise InputError(f"gene {symbol!r} is not in the model's panel of {len(self.panel)} genes")
        return self.rates_NxG[:, self.panel.index[symbol]]

    def rows_at(self, x_um_M: np.ndarray, y_um_M: np.ndarray) -> np.ndarray:
        """The rows of `rates_NxG` at these centres, int [M]. Raises `InputError` where there is no such place."""
        at_M = same_places((self.x_um_N, self.y_um_N), (x_um_M, y_um_M))
        if (at_M < 0).any():
            x_um, y_um = (float(um_M[at_M < 0][0]) for um_M in (x_um_M, y_um_M))
            raise InputError(f"maps of {self.section}: have no place at {x_um:g}, {y_um:g} µm; predict the same bins")
        return at_M

    def names(self) -> list[str]:
        return list(self.names_N) or [f"{x:.1f}_{y:.1f}" for x, y in zip(self.x_um_N, self.y_um_N, strict=True)]

    def metadata(self) -> dict[str, Any]:
        return {
            "format": "tario gene maps",
            "format_version": FORMAT_VERSION,
            "section": self.section,
            "panel_hash": self.panel.hash,
            "trained_on": self.trained_on,
            "tissue": self.tissue,
            "banner": self.banner,
            "unit": "expected detections per place",
            "decoding": self.decoding,
            "size_um": float(self.size_um),
            "he_um_per_px": float(self.he_um_per_px),
            "validated_on": self.validated_on,
        } | self._validation_of()

    def _validation_of(self) -> dict[str, Any]:
        """Which corpus and split the validation is of, and what it knows of counts; nothing where there was none."""
        if self.validation is None:
            return {}
        known = {f"validation_{name}": self.validation.about[name] for name in ("corpus_seal", "split_by")}
        return known | self._count_numbers()

    def _count_numbers(self) -> dict[str, float]:
        return self.validation.count_numbers(self.size_um)

    @property
    def validated_on(self) -> str:
        """On which places, by cohort on how many held-out patients, and with how many genes above density."""
        if self.validation is None:
            return "nothing: 'tario evaluate' validates each gene on held-out patients"
        side_um = self.validation.about.get("bin_um")
        places = "spots" if side_um is None else f"bins of {side_um:g} µm"
        known = zip(self.validation.cohorts, self.validation.patients_C, self.validation.validated_CxG, strict=True)
        of_cohorts = "; ".join(f"{cohort}: {patients} patients, {int(validated_G.sum())} genes above density"
                               for cohort, patients, validated_G in known)  # fmt: skip
        caution = f". {SPLIT_BY_SECTION}" if self.validation.split_by == "section" else ""
        return f"{places}: {of_cohorts}{caution}"

    def gene_columns(self) -> dict[str, np.ndarray]:
        """By gene and cohort, as `held_out_r_all` or `validated_LUAD`: see `GeneValidation.of`. Empty where unknown."""
        if self.validation is None:
            return {}
        return {f"{name}_{cohort}": values for cohort in self.validation.cohorts
                for name, values in self.validation.of(cohort, self.panel.symbols).items()}  # fmt: skip

    def columns(self) -> dict[str, np.ndarray]:
        """What is known of each place, [N] each."""
        return {"x_um": self.x_um_N, "y_um": self.y_um_N, "size_um": np.full(len(self.x_um_N), self.size_um)}

    def to_anndata(self, *, count_variance: bool = False):
        """As AnnData: obs = places with x_um and y_um, var_names = symbols, obsm['spatial'] in full-resolution px.

        Full resolution is the image that the section's H&E was cut from; where ingest resampled the H&E into the
        assay's frame (Xenium), it is that resampled image. count_variance: as a layer.
        """
        try:
            import anndata
            import pandas
        except ImportError:
            raise InputError("AnnData is not installed; pip install 'tario-jax[io]'") from None
        obs = pandas.DataFrame(self.columns(), index=self.names())
        genes = pandas.DataFrame(self.gene_columns(), index=list(self.panel.symbols))
        maps = anndata.AnnData(self.rates_NxG, obs=obs, var=genes)
        maps.obsm["spatial"] = np.stack([self.x_um_N, self.y_um_N], 1) / self.he_um_per_px + self.he_origin_px
        if self.between_NxG is not None:
            maps.layers["between_sample_variance"] = self.between_NxG
        if count_variance:
            maps.layers["count_variance"] = self.count_variance()
        maps.uns["tario"] = self.metadata()
        return maps

    def write_h5ad(self, path: Path, *, count_variance: bool = False) -> None:
        """Writes AnnData; the file is absent or whole."""
        maps = self.to_anndata(count_variance=count_variance)
        with whole_output(path) as partial:
            refuse_full(partial, maps.X.nbytes * (1 + len(maps.layers)))
            maps.write_h5ad(partial)

    def write_table(self, path: Path) -> None:
        """Writes places × genes with expected counts: .parquet, or .tsv / .csv with the metadata in '#' lines.

        Where the model was validated, what is known of each gene stands beside it, in NAME.genes.tsv.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from tario_jax.predict.table_file import SEPARATORS

        # one side for all places stands in the metadata
        places = {"place": self.names()} | {name: of for name, of in self.columns().items() if name != "size_um"}
        table = pa.table(places | dict(zip(self.panel.symbols, self.rates_NxG.T, strict=True)))
        table = table.replace_schema_metadata({f"tario.{name}": str(value) for name, value in self.metadata().items()})
        if path.suffix not in (".parquet", *SEPARATORS):
            raise InputError(f"--table={path}: ends in {path.suffix!r}; expected .parquet, .tsv or .csv")
        of_genes = path.with_suffix(".genes.tsv")
        with whole_output(path) as partial:
            if path.suffix == ".parquet":
                pq.write_table(table, partial)
            else:
                with partial.open("w", newline="") as file:
                    file.writelines(f"# {name}: {value}\n" for name, value in self.metadata().items())
                    lines = csv.writer(file, delimiter=SEPARATORS[path.suffix], lineterminator="\n")
                    lines.writerow(table.column_names)
                    for (name, *of), rates in zip(zip(*places.values(), strict=True), self.rates_NxG, strict=True):
                        lines.writerow([name, *(f"{value:.2f}" for value in of), *(f"{rate:.6g}" for rate in rates)])
        if self.validation is None:
            of_genes.unlink(missing_ok=True)  # that of another checkpoint
        else:
            columns = self.gene_columns()
            lines = ["\t".join(("symbol", *columns))]
            for symbol, *values in zip(self.panel.symbols, *columns.values(), strict=True):
                lines.append("\t".join((symbol, *(f"{value:.4g}" for value in values))))
            write_whole(of_genes, "\n".join(lines) + "\n")
