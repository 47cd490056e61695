"""HEST-1k: several samples of one release, whose patients and scale come from the metadata or from the user."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tifffile
from refusals import refused
from whole_sections import whole_sections

from tario_jax.sources.hest import read_hest, read_patients

UM_PER_PX, PITCH_PX = 0.8, 125  # 100 µm
GENES = ("TP53", "MYC", "MYC-1", "NKX2-1")  # scanpy made the second MYC unique; NKX2-1 is a gene


def metadata(**samples):
    rows = [{"dataset_title": "A study, in one", "id": name, "patient": "Patient 1", "st_technology": "Visium",
             "pixel_size_um_embedded": 9.0, "pixel_size_um_estimated": UM_PER_PX, "oncotree_code": "IDC",
             "spot_diameter": ""} | fields for name, fields in samples.items()]  # fmt: skip
    return pd.DataFrame(rows)


def save(folder, table, name="HEST_v1_1_0.csv"):
    table.to_csv(folder / name, index=False, encoding="utf-8-sig")


def sample(folder, name, seed=0, genes=GENES, dense=False, ids=True):
    """5 × 4 spots on a scan of noise; spot i lies on a dark dot."""
    for part in ("st", "wsis"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(5), np.arange(4)))
    place = np.stack([500 + PITCH_PX * x, 450 + PITCH_PX * y], 1)
    counts = rng.poisson(2.0, (len(x), len(genes))).astype(np.float32)
    var = {"gene_ids": [f"ENSG{row:011d}.2" for row in range(len(genes))]} if ids else {}
    names = [f"spot{number}" for number in range(len(x))]
    data = anndata.AnnData(counts if dense else scipy.sparse.csr_matrix(counts), pd.DataFrame(index=names),
                           pd.DataFrame(var, index=list(genes)), obsm={"spatial": place})  # fmt: skip
    data.write_h5ad(folder / f"st/{name}.h5ad")
    image = rng.integers(190, 255, (1400, 1600, 3), dtype=np.uint8)
    for column, row in place:
        image[row - 5 : row + 5, column - 5 : column + 5] = (120, 40, 140)
    with tifffile.TiffWriter(folder / f"wsis/{name}.tif", bigtiff=True) as file:  # a pyramid, as the release has
        file.write(image, photometric="rgb", subifds=1, tile=(256, 256))
        file.write(image[::2, ::2].copy(), photometric="rgb", subfiletype=1, tile=(256, 256))
    return pd.DataFrame(counts, names, list(genes))


@pytest.fixture
def release(tmp_path):
    """Two samples of one patient, and one of which the metadata do not say whose it is."""
    counts = {
        "TENX1": sample(tmp_path, "TENX1"),
        "TENX2": sample(tmp_path, "TENX2", 1, ("MYC", "EGFR"), dense=True, ids=False),
        "NCBI3": sample(tmp_path, "NCBI3", 2),
    }
    save(tmp_path, metadata(TENX1={}, TENX2={"st_technology": "Spatial Transcriptomics"}, NCBI3={"patient": ""},
                            X9={"st_technology": "Xenium"}))  # fmt: skip
    return tmp_path, counts


def test_samples_become_sections_with_their_counts_places_and_genes(release):
    folder, counts = release
    ingested = read_hest(folder, samples=("TENX1", "TENX2"))
    sections = {section.section_id: section for section in whole_sections(ingested)}
    assert ingested.panel.symbols == ("EGFR", "MYC", "NKX2-1", "TP53")
    assert ingested.panel.ensembl == ("", "", "ENSG00000000003", "ENSG00000000000")
    first, second = sections["TENX1"], sections["TENX2"]
    expected = counts["TENX1"].assign(MYC=counts["TENX1"].MYC + counts["TENX1"]["MYC-1"], EGFR=0)
    dense = pd.DataFrame(first.spots.dense(4), first.spots.name_N, ingested.panel.symbols)
    pd.testing.assert_frame_equal(dense, expected[list(ingested.panel.symbols)], check_dtype=False)
    assert second.spots.dense(4).sum() == counts["TENX2"].to_numpy().sum()
    measured = [[symbol for symbol, there in zip(ingested.panel.symbols, section.measured_gene_G, strict=True) if there]
                for section in (first, second)]  # fmt: skip
    assert measured == [["MYC", "NKX2-1", "TP53"], ["EGFR", "MYC"]]
    assert (first.patient_id, first.cohort, first.he_um_per_px) == ("Patient 1", "IDC", UM_PER_PX)
    assert (first.spots.diameter_um, second.spots.diameter_um) == (55, 100)
    column = (first.spots.x_um_N / UM_PER_PX).astype(int)
    row = (first.spots.y_um_N / UM_PER_PX).astype(int)
    assert (first.he[row, column] == (120, 40, 140)).all() and first.he.shape[1] < 1600
    assert "1 symbols have several rows, summed: MYC" in ingested.report.table()
    for name in ("TENX1", "TENX2"):
        tally = ingested.report.tally("counts", name)
        assert tally.read == counts[name].to_numpy().sum() == tally.kept + sum(tally.dropped.values())


def test_patients_come_from_the_metadata_or_the_user_and_are_never_guessed(release):
    folder, _ = release
    refused(lambda: read_hest(folder, samples=("TENX1", "NCBI3")), "no patient of NCBI3", "--patients-file")
    path = folder / "who.tsv"
    path.write_text("NCBI3\tP7\n")
    ingested = read_hest(folder, samples=("TENX1", "NCBI3"), patients=read_patients(path))
    assert {section.section_id: section.patient_id for section in ingested.sections} == {
        "TENX1": "Patient 1", "NCBI3": "P7",
    }  # fmt: skip
    assert next(read_hest(folder, samples=("NCBI3",), patients="P8").sections).patient_id == "P8"
    refused(lambda: read_hest(folder, samples=("TENX1",), patients={"NCBI9": "P"}), "NCBI9: not in the metadata")
    for text, word in (("NCBI3 P7\n", "line 1 is 'NCBI3 P7'"), ("A\tP\nA\tQ\n", "A is 'P' and 'Q'")):
        path.write_text(text)
        refused(lambda: read_patients(path), "--patients-file=", word)


def test_a_patient_of_two_data_sets_is_one_or_two_only_if_the_user_says_so(release):
    folder, _ = release
    save(folder, metadata(TENX1={}, TENX2={"dataset_title": "Another study"}))
    both = ("TENX1", "TENX2")
    refused(lambda: read_hest(folder, samples=both), "'Patient 1' stands in 2 data sets", "TENX1, TENX2")
    said = read_hest(folder, samples=both, patients={"TENX1": "P1", "TENX2": "P2"})
    assert [section.patient_id for section in said.sections] == ["P1", "P2"]


def test_samples_that_come_one_by_one_do_not_make_one_person_of_two(release):
    folder, _ = release
    save(folder, metadata(TENX1={}, TENX2={"dataset_title": "Another study"}))
    refused(lambda: read_hest(folder, samples=("TENX1",)), "'Patient 1' stands in 2 data sets", "--patients-file")


def test_a_gene_that_references_name_otherwise_is_one_gene_by_its_id(tmp_path):
    """The third sample gives no ids, and knows the gene by the symbol of the second alone."""
    made = {"TENX1": ("FAM19A5", "EGFR"), "TENX2": ("TAFA5", "MYC"), "TENX3": ("TAFA5", "EGFR")}
    counts = {name: sample(tmp_path, name, seed, genes, ids=False) for seed, (name, genes) in enumerate(made.items())}
    for name, ids in {"TENX1": ("ENSG1", "ENSG2"), "TENX2": ("ENSG1", "ENSG3")}.items():
        data = anndata.read_h5ad(tmp_path / f"st/{name}.h5ad")
        data.var["gene_ids"] = list(ids)
        data.write_h5ad(tmp_path / f"st/{name}.h5ad")
    save(tmp_path, metadata(**{name: {} for name in made}))
    read = read_hest(tmp_path, samples=tuple(made))
    assert read.panel.symbols == ("EGFR", "FAM19A5", "MYC") and read.panel.ids[1] == "ENSG1"
    assert any("TAFA5 is FAM19A5 by ENSG1" in note for note in read.report.notes)
    measured = {"TENX1": [True, True, False], "TENX2": [False, True, True], "TENX3": [True, True, False]}
    for section in read.sections:
        dense, own = section.spots.dense(3), counts[section.section_id]
        assert section.measured_gene_G.tolist() == measured[section.section_id]
        assert dense[:, 1].sum() == own[made[section.section_id][0]].sum() and dense.sum() == own.to_numpy().sum()


def test_other_technologies_and_what_the_release_lacks_are_answered_in_one_line(release):
    folder, _ = release
    (folder / "st/X9.h5ad").write_bytes((folder / "st/TENX1.h5ad").read_bytes())
    refused(lambda: read_hest(folder), "sample X9 is Xenium", "--source=xenium")
    refused(lambda: read_hest(folder, samples=("TENX7",)), "no st/ID.h5ad of TENX7")
    (folder / "wsis/TENX2.tif").unlink()
    refused(lambda: read_hest(folder, samples=("TENX2",)), "wsis/TENX2.tif: no such file")
    save(folder, metadata(TENX1={"oncotree_code": ""}))
    refused(lambda: read_hest(folder, samples=("TENX1",)), "no oncotree_code", "TENX1", "--cohort")
    assert next(read_hest(folder, samples=("TENX1",), cohort="BRCA").sections).cohort == "BRCA"
    save(folder, metadata(TENX1={"pixel_size_um_estimated": ""}))
    refused(lambda: read_hest(folder, samples=("TENX1",)), "TENX1 have pixel_size_um_estimated = ''")
    save(folder, metadata(TENX1={"st_technology": "Slide-seq"}))
    refused(lambda: read_hest(folder, samples=("TENX1",)), "'Slide-seq'", "Visium, Spatial Transcriptomics")
    save(folder, metadata(TENX1={}), "HEST_v1_0_0.csv")
    refused(lambda: read_hest(folder), "HEST_v1_0_0.csv, HEST_v1_1_0.csv", "--metadata=FILE")
    assert read_hest(folder, samples=("TENX1",), metadata=folder / "HEST_v1_0_0.csv").number == 1


def test_spots_beside_the_tissue_are_dropped_and_counted(release):
    folder, counts = release
    data = anndata.read_h5ad(folder / "st/TENX1.h5ad")
    data.obs["in_tissue"] = [0, 0, 0] + [1] * 17
    data.write_h5ad(folder / "st/TENX1.h5ad")
    ingested = read_hest(folder, samples=("TENX1",))
    (section,) = whole_sections(ingested)
    assert section.spots.name_N == tuple(f"spot{number}" for number in range(3, 20))
    assert ingested.report.tally("spots", "TENX1").dropped == {"not in tissue": 3}
    beside = counts["TENX1"].iloc[:3].to_numpy().sum()
    assert ingested.report.tally("counts", "TENX1").dropped == {"spots not in tissue": beside}
    np.testing.assert_array_equal(section.spots.dense(3).sum(1), counts["TENX1"].iloc[3:].sum(1))


def test_two_species_are_not_read_onto_one_panel(release):
    folder, _ = release
    save(folder, metadata(TENX1={"species": "Homo sapiens"}, TENX2={"species": "Mus musculus"}))
    refused(lambda: read_hest(folder, samples=("TENX1", "TENX2")), "Homo sapiens (TENX1), Mus musculus", "--sections")
    assert read_hest(folder, samples=("TENX2",)).number == 1


def test_a_scan_that_states_another_scale_than_the_metadata_is_noted(release):
    folder, _ = release
    image = tifffile.imread(folder / "wsis/TENX1.tif")
    tifffile.imwrite(folder / "wsis/TENX1.tif", image, photometric="rgb", resolution=(20_000, 20_000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    ingested = read_hest(folder, samples=("TENX1",))
    (section,) = ingested.sections
    assert section.he_um_per_px == UM_PER_PX
    assert "TENX1: 0.8 µm per px by the metadata is taken, TENX1.tif says 0.5" in ingested.report.table()


def test_files_that_are_no_counts_or_no_h5ad_are_refused(release):
    folder, _ = release
    path = folder / "st/TENX1.h5ad"
    data = anndata.read_h5ad(path)
    data.X = data.X * 0.5
    data.write_h5ad(path)
    refused(lambda: list(read_hest(folder, samples=("TENX1",)).sections), "TENX1.h5ad", "expected raw counts")
    del data.obsm["spatial"]
    data.write_h5ad(path)
    refused(lambda: list(read_hest(folder, samples=("TENX1",)).sections), "no obsm['spatial']")
    anndata.AnnData(None, data.obs, data.var).write_h5ad(path)
    refused(lambda: list(read_hest(folder, samples=("TENX1",)).sections), "TENX1.h5ad: has no X")
    path.write_bytes(b"no h5ad")
    refused(lambda: read_hest(folder, samples=("TENX1",)), "TENX1.h5ad: cannot be read as h5ad")
