"""HEST-1k: `st/<id>.h5ad`, `wsis/<id>.tif` and a metadata csv, for samples of Visium and Spatial Transcriptomics."""

import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from tario_jax.config import InputError
from tario_jax.corpus.section import PLAUSIBLE_UM_PER_PX, SectionData
from tario_jax.panel import Panel
from tario_jax.sources.delimited import header, read_table, require_columns
from tario_jax.sources.gene_rows import gene_panel, whole_numbers
from tario_jax.sources.images import reason_of
from tario_jax.sources.ingested import Ingested, IngestReport
from tario_jax.sources.picture import Picture
from tario_jax.sources.slide_files import opened_slide
from tario_jax.sources.spot_table import SpotTable

DIAMETER_UM = {"Visium": 55.0, "Spatial Transcriptomics": 100.0}
_READ_WITH = {"Xenium": "xenium", "Visium HD": "visium_hd"}
_COLUMNS = ("id", "patient", "st_technology", "pixel_size_um_estimated", "dataset_title", "oncotree_code")
_UNKNOWN = ("", "nan", "None", "NA")
_MADE_UNIQUE = re.compile(r"(.+)-\d+", re.ASCII)  # what scanpy makes of a symbol that stood there before


@dataclasses.dataclass(frozen=True)
class _Sample:
    name: str
    patient: str
    cohort: str
    diameter_um: float
    um_per_px: float
    table: Path
    image: Path


@dataclasses.dataclass(frozen=True)
class _Genes:
    """Rows of `var` as they become genes: the panel of the sample alone, and the gene of each row."""

    panel: Panel
    gene_R: np.ndarray


def read_hest(
    folder: str | Path, *, samples: tuple[str, ...] = (), patients: Mapping[str, str] | str | None = None,
    cohort: str | None = None, metadata: str | Path | None = None,
) -> Ingested:  # fmt: skip
    """Reads the samples named, or all of `st/`, each as one section of spots.

    `metadata` is the csv of the release, by default the only csv of the folder. `patients` says whose a sample is: one
    patient of all, or patients by sample; the metadata's `patient` serves for the others. The cohort is `cohort`, else
    the metadata's `oncotree_code`. µm per px is `pixel_size_um_estimated`; the diameter of a spot is `spot_diameter`
    where the metadata have it, else 55 µm for Visium and 100 for ST. The panel is the union of the samples' genes by
    symbol, sorted; a section measured those that its own file has rows for. Names that scanpy made unique (NAME-1
    beside NAME) are summed into the symbol that they were.

    Raises `InputError` for a sample without patient or cohort, of a technology that another source reads, or with a
    missing or unreadable file; for values that are no counts; for places that are not px of the image.
    """
    folder = Path(folder)
    report = IngestReport("HEST-1k", str(folder))
    rows = _metadata(_metadata_file(folder, metadata))
    read = _samples(folder, rows, samples, patients, cohort)
    genes = [_genes(sample, report) for sample in read]  # names only: the counts are read when their turn comes
    panel, known_as = _union([one.panel for one in genes], report)

    def generate() -> Iterator[SectionData]:
        for sample, own in zip(read, genes, strict=True):
            yield from _sections(sample, own, panel, known_as, report)

    return Ingested(panel, generate(), len(read), report)


def read_patients(path: Path) -> dict[str, str]:
    """Patients by sample: lines of id, tab, patient. Raises `InputError` for any other line, or an id twice."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"--patients-file={path}: cannot be read; expected lines of ID, tab, patient") from None
    patients: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, patient = (part.strip() for part in line.partition("\t"))
        if not name or not patient or "\t" in patient:
            raise InputError(f"--patients-file={path}: line {number} is {line!r}; expected ID, tab, patient")
        if patients.setdefault(name, patient) != patient:
            raise InputError(f"--patients-file={path}: {name} is {patients[name]!r} and {patient!r}; expected one")
    return patients


def _metadata_file(folder: Path, named: str | Path | None) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected HEST-1k with st/, wsis/ and a metadata csv")
    found = sorted(folder.glob("*.csv")) if named is None else [Path(named)]
    if len(found) != 1 or not found[0].is_file():
        there = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"{folder}: metadata csv: {there}; expected one, or the one that is meant with --metadata=FILE"
        )
    return found[0]


def _metadata(path: Path) -> dict[str, dict[str, str]]:
    """Rows by id, as text. The file may begin with a byte order mark."""
    names = header(path)
    require_columns(path, names, _COLUMNS)
    wanted = [*_COLUMNS, *(name for name in ("spot_diameter", "species") if name in names)]
    table = read_table(path, names, {names.index(name): pa.string() for name in wanted}, ",")
    columns = [["" if value in (None, *_UNKNOWN) else value.strip() for value in column.to_pylist()]
               for column in table.columns]  # fmt: skip
    rows: dict[str, dict[str, str]] = {}
    for values in zip(*columns, strict=True):
        row = dict(zip(wanted, values, strict=True))
        if row["id"] in rows:
            raise InputError(f"{path}: id {row['id']!r} stands twice; expected each sample once")
        rows[row["id"]] = row
    return rows


def _samples(
    folder: Path, rows: dict[str, dict[str, str]], wanted: tuple[str, ...], patients: Mapping[str, str] | str | None,
    cohort: str | None,
) -> list[_Sample]:  # fmt: skip
    present = sorted(path.stem for path in (folder / "st").glob("*.h5ad"))
    names = sorted(set(wanted)) if wanted else present
    if not names:
        raise InputError(f"{folder / 'st'}: no file ID.h5ad; expected the samples of HEST-1k")
    for what, missing in (
        (f"no st/ID.h5ad of {', '.join(sorted(set(names) - set(present)))}", set(names) - set(present)),
        (f"the metadata say nothing of {', '.join(sorted(set(names) - set(rows)))}", set(names) - set(rows)),
    ):
        if missing:
            raise InputError(f"{folder}: {what}; expected all samples that are read; name others with --sections")
    if isinstance(patients, Mapping) and (strange := sorted(set(patients) - set(rows))):
        raise InputError(
            f"--patients-file: {', '.join(strange[:8])}: not in the metadata of {folder}; expected its ids"
        )
    for name in names:
        technology = rows[name]["st_technology"]
        if technology in _READ_WITH:
            raise InputError(f"{folder}: sample {name} is {technology}, whose places are finer than spots; read the "
                             f"vendor's own output with --source={_READ_WITH[technology]}, and leave it out here "
                             "(--sections)")  # fmt: skip
        if technology not in DIAMETER_UM:
            raise InputError(f"{folder}: sample {name} has st_technology {technology!r}; expected one of "
                             f"{', '.join(DIAMETER_UM)}")  # fmt: skip
    of_species = {rows[name]["species"]: name for name in names if rows[name].get("species")}
    if len(of_species) > 1:
        raise InputError(f"{folder}: samples of {', '.join(f'{kind} ({name})' for kind, name in of_species.items())}; "
                         "expected one species, since the panel is one; choose samples with --sections")  # fmt: skip
    whose = _patients(folder, rows, names, patients)
    homeless = [] if cohort else [name for name in names if not rows[name]["oncotree_code"]]
    if homeless:
        raise InputError(f"{folder}: no oncotree_code in the metadata of {', '.join(homeless)}; give --cohort")
    return [_sample(folder, rows[name], whose[name], cohort) for name in names]


def _patients(
    folder: Path, rows: dict[str, dict[str, str]], names: list[str], given: Mapping[str, str] | str | None
) -> dict[str, str]:
    """Patients by sample. A name of the metadata counts for one data set only: there is a patient 1 in many."""
    if isinstance(given, str):
        return dict.fromkeys(names, given)
    named = {name: (given or {}).get(name) or rows[name]["patient"] for name in names}
    unknown = [name for name in names if not named[name]]
    if unknown:
        raise InputError(
            f"{folder}: the metadata name no patient of {', '.join(unknown)}; say who they are with --patients-file "
            "(lines of ID, tab, patient) or --patient, since splits go by patient"
        )
    data_sets: dict[str, set[str]] = {}
    for name, row in rows.items():  # all of the release, since samples may come in several ingests
        if name not in (given or {}) and row["patient"]:
            data_sets.setdefault(row["patient"], set()).add(row["dataset_title"])
    asked = {named[name] for name in names if name not in (given or {})}
    shared = sorted(patient for patient, titles in data_sets.items() if len(titles) > 1 and patient in asked)
    if shared:
        of = [name for name in names if named[name] == shared[0]]
        raise InputError(
            f"{folder}: patient {shared[0]!r} stands in {len(data_sets[shared[0]])} data sets (samples "
            f"{', '.join(of)}); say with --patients-file whether it is one person: one name, or several"
        )
    return named


def _sample(folder: Path, row: dict[str, str], patient: str, cohort: str | None) -> _Sample:
    def number(column: str, low: float, high: float) -> float:
        try:
            value = float(row[column])
        except ValueError:
            value = np.nan
        if not low <= value <= high:
            raise InputError(f"{folder}: the metadata of {row['id']} have {column} = {row[column]!r}; expected {low:g} "
                             f"to {high:g}")  # fmt: skip
        return value

    diameter_um = DIAMETER_UM[row["st_technology"]]
    if row.get("spot_diameter"):
        diameter_um = number("spot_diameter", 10.0, 300.0)
    image = folder / "wsis" / f"{row['id']}.tif"
    if not image.is_file():
        raise InputError(f"{image}: no such file; expected the H&E of {row['id']}")
    return _Sample(
        row["id"], patient, cohort or row["oncotree_code"], diameter_um,
        number("pixel_size_um_estimated", *PLAUSIBLE_UM_PER_PX), folder / "st" / f"{row['id']}.h5ad", image,
    )  # fmt: skip


def _open(path: Path, backed: bool):
    """The file as AnnData: without its counts where `backed`."""
    try:
        import anndata
    except ImportError:
        raise InputError(f"{path}: needs anndata; pip install 'tario-jax[io]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are not unique, which are summed here
            return anndata.read_h5ad(path, backed="r" if backed else None)
    except Exception as error:  # whatever a broken file makes anndata and h5py raise
        raise InputError(
            f"{path}: cannot be read as h5ad: {reason_of(error)}; expected the file of HEST-1k unchanged"
        ) from None


def _genes(sample: _Sample, report: IngestReport) -> _Genes:
    data = _open(sample.table, backed=True)
    try:
        names, var = [str(name) for name in data.var_names], data.var
        ids = [str(gene_id) for gene_id in var["gene_ids"]] if "gene_ids" in var else [""] * len(names)
        kinds = (
            [str(kind) for kind in var["feature_types"]] if "feature_types" in var else ["Gene Expression"] * len(ids)
        )
    finally:
        data.file.close()
    there = set(names)
    symbols = [found[1] if (found := _MADE_UNIQUE.fullmatch(name)) and found[1] in there else name for name in names]
    reason = ["" if kind == "Gene Expression" else f"feature type {kind}, not a gene" for kind in kinds]
    return _Genes(*gene_panel(sample.table, sample.name, symbols, ids, reason, report))


def _union(panels: list[Panel], report: IngestReport) -> tuple[Panel, dict[str, str]]:
    """All genes, sorted; with the id that those which know one agree on.

    An id that samples know by several symbols, as references of other years do, is one gene, by the first of them; the
    dict says of every symbol which that is.
    """
    ids: dict[str, set[str]] = {}
    for panel in panels:
        for symbol, gene_id in zip(panel.symbols, panel.ensembl or ("",) * len(panel), strict=True):
            ids.setdefault(symbol, set()).update({gene_id} - {""})
    contested = [symbol for symbol in sorted(ids) if len(ids[symbol]) > 1]
    if contested:
        report.notes.append(f"{len(contested)} symbols have other Ensembl ids in other samples, and none in the panel: "
                            f"{', '.join(contested[:8])}")  # fmt: skip
    doubtful = set().union(*(ids[symbol] for symbol in contested))
    id_of = {symbol: "".join(ids[symbol] - doubtful) for symbol in ids}
    first_of: dict[str, str] = {}
    for symbol, gene_id in id_of.items():
        first_of.setdefault(gene_id or symbol, symbol)
    renamed = [f"{symbol} is {first_of[gene_id]} by {gene_id}" for symbol, gene_id in id_of.items()
               if gene_id and first_of[gene_id] != symbol]  # fmt: skip
    if renamed:
        report.notes.append(f"{len(renamed)} symbols are of the Ensembl id of another one: {'; '.join(renamed[:8])}")
    symbols = sorted(first_of.values())
    known_as = {symbol: first_of[gene_id or symbol] for symbol, gene_id in id_of.items()}
    return Panel.of_ids(symbols, (id_of[symbol] for symbol in symbols)), known_as


def _sections(sample: _Sample, own: _Genes, panel: Panel, known_as: dict[str, str],
              report: IngestReport) -> Iterator[SectionData]:  # fmt: skip
    import scipy.sparse

    data = _open(sample.table, backed=False)
    if data.X is None:
        raise InputError(f"{sample.table}: has no X; expected raw counts of spots")
    counts_NxR = scipy.sparse.csr_array(data.X)
    if "spatial" not in data.obsm or np.shape(data.obsm["spatial"])[1:] != (2,):
        raise InputError(f"{sample.table}: has no obsm['spatial'] of two columns; expected px of the full image")
    count_E = whole_numbers(sample.table, counts_NxR.data)
    counts = report.open("counts", sample.name, count_E.sum(dtype=np.int64))
    spots = report.open("spots", sample.name, counts_NxR.shape[0])
    outside_N = np.zeros(len(data.obs), bool)
    if "in_tissue" in data.obs:
        outside_N = np.isin(data.obs["in_tissue"].astype(str), ("0", "0.0", "False"))
    if outside_N.any():
        if outside_N.all():
            raise InputError(f"{sample.table}: obs['in_tissue'] is 0 of every spot; expected 1 where there is tissue")
        spots.drop("not in tissue", outside_N.sum())
        counts.drop(
            "spots not in tissue", count_E[np.repeat(outside_N, np.diff(counts_NxR.indptr))].sum(dtype=np.int64)
        )
        data, counts_NxR = data[~outside_N], counts_NxR[~outside_N]
        count_E = whole_numbers(sample.table, counts_NxR.data)
    to_panel = panel.positions(tuple(known_as[symbol] for symbol in own.panel.symbols))
    gene_E = own.gene_R[counts_NxR.indices]
    kept_E = gene_E >= 0
    counts.drop("feature that is no gene", count_E[~kept_E].sum(dtype=np.int64))
    array_xy_Nx2 = None
    if {"array_col", "array_row"} <= set(data.obs):
        array_xy_Nx2 = _whole_places(data.obs[["array_col", "array_row"]].to_numpy())
    table = SpotTable(
        tuple(str(name) for name in data.obs_names), np.asarray(data.obsm["spatial"], np.float64), array_xy_Nx2,
        sample.diameter_um, np.concatenate([[0], np.cumsum(kept_E)])[counts_NxR.indptr], to_panel[gene_E[kept_E]],
        count_E[kept_E], spots, counts,
    )  # fmt: skip
    measured_gene_G = np.zeros(len(panel), bool)
    measured_gene_G[to_panel] = True
    with opened_slide(sample.image) as file:
        stated_um = file.other_scale(sample.um_per_px)
    if stated_um is not None:  # the release estimates it from the spots, where scans were misstated
        report.notes.append(f"{sample.name}: {sample.um_per_px:.4g} µm per px by the metadata is taken, "
                            f"{sample.image.name} says {stated_um:.4g}")  # fmt: skip
    yield from table.sections((sample.name, sample.patient, sample.cohort), Picture(sample.image, sample.um_per_px),
                              len(panel), measured_gene_G)  # fmt: skip


def _whole_places(array_xy_Nx2: np.ndarray) -> np.ndarray | None:
    """Array coordinates as int32; None where they are none, since they are wanted by nobody but their reader."""
    try:
        array_xy_Nx2 = array_xy_Nx2.astype(np.float64)
    except (TypeError, ValueError):
        return None
    return array_xy_Nx2.astype(np.int32) if np.isfinite(array_xy_Nx2).all() else None
