"""An H&E beside CosMx flat files: into the slide's frame, with its kind of registration, and checked there."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from refusals import refused
from scipy.ndimage import distance_transform_edt

from tario_jax.cli.main import main
from tario_jax.corpus.read import Corpus
from tario_jax.sources.check import check
from tario_jax.sources.cosmx import read_cosmx
from tario_jax.sources.ingest import ingest

UM_PER_PX, SIDE_PX, FIELDS = 0.25, 720.0, (3, 2)  # fields of 180 µm, three across and two down
FIELD_UM = SIDE_PX * UM_PER_PX
WHO = {"patient_id": "P1", "cohort": "lung", "section_id": "S1"}
HE_UM_PER_PX = 0.5
SIZE_PX = (1080, 720)  # of the H&E
SAME = {"registration": "same_section_after"}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Nuclei on an H&E of 540 × 360 µm, detections in them and around them, and flat files whose y points up."""
    folder = tmp_path_factory.mktemp("cosmx")
    rng = np.random.default_rng(0)
    size_um = np.array(FIELDS) * SIDE_PX * UM_PER_PX
    nuclei_um = rng.uniform(6, size_um - 6, (700, 2))
    he = np.full((*SIZE_PX[::-1], 3), (225, 160, 200), np.uint8)
    outside = np.ones(he.shape[:2], bool)
    column, row = (nuclei_um / HE_UM_PER_PX).astype(int).T
    outside[row, column] = False
    he[distance_transform_edt(outside) * HE_UM_PER_PX < 4] = (90, 60, 150)
    Image.fromarray(he).save(folder / "he.png")
    place_um = np.clip(np.repeat(nuclei_um, 20, 0) + rng.normal(0, 1.5, (14_000, 2)), 0.01, size_um - 0.01)
    field = (place_um // (SIDE_PX * UM_PER_PX)).astype(int)
    global_px = np.stack([place_um[:, 0], size_um[1] - place_um[:, 1]], 1) / UM_PER_PX + (3000, -20_000)
    start_px = np.stack([3000 + SIDE_PX * field[:, 0], -20_000 + SIDE_PX * (FIELDS[1] - 1 - field[:, 1])], 1)
    local_px = global_px - start_px
    fov = 1 + field[:, 0] + FIELDS[0] * field[:, 1]
    tx = pd.DataFrame({"fov": fov, "cell_ID": np.repeat(np.arange(700), 20), "x_local_px": local_px[:, 0],
                       "y_local_px": local_px[:, 1], "x_global_px": global_px[:, 0], "y_global_px": global_px[:, 1],
                       "target": rng.choice(["A", "B", "NegPrb1"], len(fov)), "CellComp": "Nuclear"})  # fmt: skip
    tx.to_csv(folder / "S1_tx_file.csv.gz", index=False)
    corner = pd.DataFrame({"fov": fov, "x_global_px": start_px[:, 0], "y_global_px": start_px[:, 1]})
    corner.drop_duplicates().to_csv(folder / "S1_fov_positions_file.csv", index=False)
    return folder


def affine(folder, *, right_um=0.0, mirror=False):
    """H&E px to global px: the H&E lies so far too far right, or is mirrored left to right."""
    scale = HE_UM_PER_PX / UM_PER_PX
    to_global = np.array(
        [[scale, 0, 3000 + right_um / UM_PER_PX], [0, -scale, -20_000 + FIELDS[1] * SIDE_PX], [0, 0, 1]]
    )
    if mirror:
        to_global = to_global @ [[-1, 0, SIZE_PX[0]], [0, 1, 0], [0, 0, 1]]
    path = folder / f"affine_{right_um}_{mirror}.csv"
    np.savetxt(path, to_global, delimiter=",")
    return path


def read(folder, alignment, **more):
    arguments = WHO | {"um_per_px": UM_PER_PX, "image": folder / "he.png", "alignment": alignment} | SAME | more
    return read_cosmx(folder, **arguments)


def test_detections_lie_on_the_nuclei_that_they_came_from(slide, tmp_path):
    corpus = ingest(read(slide, affine(tmp_path)), tmp_path / "c", lambda line: None)
    (section,) = corpus.sections
    assert (section.width_um, section.height_um) == (pytest.approx(540, abs=9), pytest.approx(360, abs=9))
    assert (
        section.he_um_per_px == pytest.approx(HE_UM_PER_PX) and section.record["registration"] == SAME["registration"]
    )
    found, he = section.all_detections(), section.he()
    at = (found.y_um_D / HE_UM_PER_PX).astype(int), (found.x_um_D / HE_UM_PER_PX).astype(int)
    dark = he[..., 0] < 150
    assert dark[at].mean() > 0.8 > 2 * dark.mean()
    assert found.in_nucleus_D.all() and (found.cell_D > 0).sum() > 0.99 * len(found)
    (report,) = check(corpus, lambda line: None).registrations.values()
    assert report.verdict == "registered" and np.hypot(*report.shift_um) < 2


@pytest.mark.parametrize(("change", "verdict", "words"), [
    ({"mirror": True}, "mirrored", "mirrored left to right"),
    ({"right_um": FIELD_UM}, "shifted", "about one field of view"),
])  # fmt: skip
def test_a_mirrored_or_shifted_slide_is_a_fault_of_its_corpus(slide, tmp_path, change, verdict, words):
    corpus = ingest(read(slide, affine(tmp_path, **change)), tmp_path / "c", lambda line: None)
    found = check(corpus, lambda line: None)
    assert found.registrations["S1"].verdict == verdict
    (fault,) = [finding.fault for finding in found.faults]
    assert words in fault and fault.startswith(verdict), fault
    if "right_um" in change:  # the detections lie left of an H&E that was moved to the right
        assert found.registrations["S1"].shift_um[0] == pytest.approx(-change["right_um"], abs=3)


def test_rows_beside_the_he_are_counted_and_nothing_is_lost(slide, tmp_path):
    ingested = read(slide, affine(tmp_path, right_um=FIELD_UM))
    (section,) = ingested.sections
    rows = pd.read_csv(slide / "S1_tx_file.csv.gz")
    tally = ingested.report.tally("detections", "S1")
    outside = (rows.x_global_px < 3000 + SIDE_PX) & (rows.target != "NegPrb1")
    assert tally.dropped["outside the H&E"] == outside.sum()
    assert tally.read == len(rows) == tally.kept + sum(tally.dropped.values())
    assert tally.kept == len(section.detections.gathered()) and section.width_um == pytest.approx(360, abs=9)


def test_an_he_elsewhere_or_half_given_is_refused(slide, tmp_path):
    refused(lambda: read(slide, affine(tmp_path, right_um=500.0)), "puts the H&E at global px", "is it turned over?")
    refused(lambda: read(slide, None), "he.png", "--alignment")
    refused(lambda: read(slide, affine(tmp_path), image=None), "--image")
    refused(lambda: read(slide, affine(tmp_path), registration=None), "--registration=same_section_after")
    refused(lambda: read(slide, None, image=None), "--registration=same_section_after", "name one too")
    refused(lambda: read(slide, affine(tmp_path), um_per_px=0.9), "µm per px of H&E", "H&E px to global px")
    (tmp_path / "flat.csv").write_text("1,0,0\n0,0,0\n0,0,1\n")
    refused(lambda: read(slide, tmp_path / "flat.csv"), "no inverse")
    (tmp_path / "flat.csv").write_text("1,0,0\n0,1,0\n")
    assert "vendor" not in refused(lambda: read(slide, tmp_path / "flat.csv"), "flat.csv: no 3×3 affine", "0,0,1")
    refused(lambda: read(slide, tmp_path / "none.csv"), "none.csv: cannot be read")


def test_the_command_takes_he_registration_and_symbol_map(slide, tmp_path, capsys):
    (tmp_path / "renamed.tsv").write_text("A\tACTB\n")
    given = ("ingest", "--source=cosmx", f"--path={slide}", "--patient=P1", "--cohort=LUAD", "--section=S1",
             f"--um-per-px={UM_PER_PX}", f"--image={slide / 'he.png'}", f"--alignment={affine(tmp_path)}",
             f"--symbol-map={tmp_path / 'renamed.tsv'}", f"--out={tmp_path / 'c'}")  # fmt: skip
    assert main([*given]) == 2 and "--registration" in capsys.readouterr().err
    assert main([*given, "--registration=adjacent"]) == 0
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.panel.symbols == ("ACTB", "B") and corpus.sections[0].record["registration"] == "adjacent"
    assert main([*given, "--registration=adjacent"]) == 0 and "is there already" in capsys.readouterr().out
