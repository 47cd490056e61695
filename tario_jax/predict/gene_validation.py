"""How well each gene was predicted on held-out patients, by cohort: the table that travels with maps and bundles."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tario_jax.config import InputError
from tario_jax.whole_file import write_whole

ALL = "all"
FILE = "validation.parquet"
SPLIT_BY_SECTION = "Split by section: a patient may be on both sides of the split."
_METADATA = b"tario"


@dataclasses.dataclass(frozen=True)
class GeneValidation:
    """A row a cohort ("all" first) and a column a gene, [C, G]: Pearson r in counts over the bins of a section, mean
    over held-out sections; of the model, and of its own density control (its predicted total times the mean
    composition).

    validated: the 95 % t interval over patients of r − density_r lies above 0; gene by gene, so that of genes without
    skill one in forty passes. One that is not validated may still be predicted well, but these patients do not show it.
    NaN: not measured, or too few patients.
    """

    symbols: tuple[str, ...]
    cohorts: tuple[str, ...]
    patients_C: np.ndarray  # int
    r_CxG: np.ndarray
    density_r_CxG: np.ndarray
    excess_low_CxG: np.ndarray
    ceiling_CxG: np.ndarray  # the largest r that any prediction could reach against these counts
    about: dict[str, Any]  # panel_hash, bin_um, corpus_seal, split_by, trained_on, tissue, checkpoint, count_spread …

    @property
    def split_by(self) -> str:
        """What lay on one side of the split: patient or section."""
        return self.about.get("split_by", "patient")

    @property
    def excess_CxG(self) -> np.ndarray:
        return self.r_CxG - self.density_r_CxG

    @property
    def validated_CxG(self) -> np.ndarray:
        return np.nan_to_num(self.excess_low_CxG, nan=-1.0) > 0

    def count_spread(self, size_um: float) -> tuple[float, float]:
        """(bursts, uncertain) of places of this side: a count of rate m varies by m (1 + bursts) + uncertain · m².

        Raises `InputError` where it was not fitted to such places.
        """
        found = self.about.get("count_spread")  # absent: written by a tario that did not fit it
        if not found:
            raise InputError("how far counts scatter was not learnt: 'tario evaluate' fits it to validation sections "
                             "of the model's own corpus; evaluate again where there are some")  # fmt: skip
        if abs(found["size_um"] - size_um) > 1e-3 * size_um:
            raise InputError(f"how far counts scatter is known of places of {found['size_um']:g} µm, and these are "
                             f"of {size_um:g} µm; predict those, or evaluate at bins of these")  # fmt: skip
        return found["bursts"], found["uncertain"]

    def count_numbers(self, size_um: float) -> dict[str, float]:
        """The same by the names that maps have for it; empty where it was not fitted to such places."""
        try:
            return dict(zip(("count_bursts", "count_uncertain"), self.count_spread(size_um), strict=True))
        except InputError:
            return {}

    def of(self, cohort: str, symbols: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Columns of one cohort for these genes: r, excess_over_density, ceiling, validated; NaN for unknown genes."""
        if cohort not in self.cohorts:
            raise InputError(f"cohort {cohort!r}: the model was validated on {', '.join(self.cohorts)}")
        row, position = self.cohorts.index(cohort), {symbol: g for g, symbol in enumerate(self.symbols)}
        at_G = np.array([position.get(symbol, -1) for symbol in symbols], int)
        known_G = at_G >= 0

        def column(values_CxG: np.ndarray) -> np.ndarray:
            return np.where(known_G, values_CxG[row, at_G].astype(np.float32), np.nan)

        return {
            "held_out_r": column(self.r_CxG), "excess_over_density": column(self.excess_CxG),
            "ceiling": column(self.ceiling_CxG), "validated": known_G & self.validated_CxG[row, at_G],
        }  # fmt: skip

    def for_model(self, panel_hash: str, checkpoint: str) -> "GeneValidation":
        """Itself. Raises `InputError` where it says nothing of that model."""
        for name, wanted in (("panel_hash", panel_hash), ("checkpoint", checkpoint)):
            if self.about[name] != wanted:
                raise InputError(f"--validation: is of {name.replace('_', ' ')} {self.about[name]}, and the model's is "
                                 f"{wanted}; give the table of this model ('tario evaluate' writes it)")  # fmt: skip
        return self

    def write(self, path: Path) -> None:
        """The file is absent or whole."""
        write_whole(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Parquet, a row a cohort and gene."""
        genes = len(self.symbols)
        table = pa.table({
            "cohort": np.repeat(self.cohorts, genes), "symbol": np.tile(self.symbols, len(self.cohorts)),
            "patients": np.repeat(self.patients_C, genes), "r": self.r_CxG.ravel(),
            "density_r": self.density_r_CxG.ravel(), "excess_over_density": self.excess_CxG.ravel(),
            "excess_low": self.excess_low_CxG.ravel(), "ceiling": self.ceiling_CxG.ravel(),
            "validated": self.validated_CxG.ravel(),
        })  # fmt: skip
        memory = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({_METADATA: json.dumps(self.about)}), memory)
        return memory.getvalue()


def read_gene_validation(path: Path) -> GeneValidation:
    """Raises `InputError` where the file is broken, or no such table."""
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
        about = json.loads(table.schema.metadata[_METADATA])
        columns = {name: table[name].to_numpy() for name in table.column_names}
        cohorts = tuple(dict.fromkeys(columns["cohort"].tolist()))
        symbols = tuple(dict.fromkeys(columns["symbol"].tolist()))
        shape = len(cohorts), len(symbols)
        r, density_r, low, ceiling = (columns[name].reshape(shape)
                                      for name in ("r", "density_r", "excess_low", "ceiling"))  # fmt: skip
        return GeneValidation(
            symbols, cohorts, columns["patients"].reshape(shape)[:, 0], r, density_r, low, ceiling, about
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, IndexError) as error:
        why = " ".join(str(error).split())[:200]  # some of Arrow's reach over several lines
        raise InputError(f"{path}: is no validation table ({why}); 'tario evaluate' writes it anew") from None
