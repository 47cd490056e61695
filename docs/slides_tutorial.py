"""The pictures of docs/slides_tutorial.md and the outputs of docs/slides.ipynb: python docs/slides_tutorial.py RUN

RUN: a workdir of configs/quickstart.py that has ended. A held-out section of its virtual tissue becomes a slide, a
pyramidal OME-TIFF with glass around it; it is predicted, looked at in Chromium by tests/view/test_view_tour.py, and the
notebook is run on it. Needs pip install -e '.[io,view,dev,docs]'. Two minutes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import tifffile
from nbclient import NotebookClient

from tario_jax.corpus.read import Corpus
from tario_jax.predict.map_store import MapStore

DOCS = Path(__file__).resolve().parent
TARIO = Path(sys.executable).parent / "tario"
GLASS_UM, GLASS = 150.0, 244
GENES = ("EPCAM", "COL1A1", "CD3E")


def main() -> None:
    run = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        section = most_varied(Corpus.open(run / "corpus"))
        slide = folder / "slide.ome.tif"
        write_slide(section, slide)
        tario("predict", f"--workdir={run}", f"--slide={slide}", f"--out={folder / 'slide.maps'}", "--uncertainty",
              "--allow-virtual-model")  # fmt: skip
        tario("predict", f"--workdir={run}", f"--section={section.id}", f"--out={folder / 'section.maps'}")
        beside(folder)
        walk = [sys.executable, "-m", "pytest", "-q", DOCS.parent / "tests" / "view" / "test_view_tour.py"]
        tour = os.pathsep.join(str(folder / name) for name in ("slide.maps", "section.maps"))
        pictures = {"TARIO_TOUR": tour, "TARIO_SCREENSHOTS": str(DOCS / "slides")}
        subprocess.run(walk, check=True, cwd=DOCS.parent, env=os.environ | pictures)
        run_notebook(run, slide)


def most_varied(corpus: Corpus):
    """Of the held-out sections, that on which EPCAM is most unevenly spread: it has tumour and something else."""

    def spread(section) -> float:
        found = section.all_detections()
        epcam = found.gene_D == corpus.panel.index["EPCAM"]
        places = np.floor(np.stack([found.x_um_D[epcam], found.y_um_D[epcam]]) / 144).astype(int)
        counts = np.bincount(places[0] * 1000 + places[1])
        return float(counts[counts > 0].std()) if epcam.any() else 0.0

    split = dict(line.split("\t")[:2] for line in (corpus.root.local / "split.tsv").read_text().splitlines()[1:])
    return max((one for one in corpus.sections if split[one.patient] == "held_out"), key=spread)


def write_slide(section, path: Path) -> None:
    """The H&E of a section with glass around it, three levels."""
    um_per_px = section.he_um_per_px
    px = round(GLASS_UM / um_per_px)
    level = np.pad(section.he(), ((px, px), (px, px), (0, 0)), constant_values=GLASS)
    metadata = {"axes": "YXS"} | {f"PhysicalSize{axis}": um_per_px for axis in "XY"} | {
        f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}  # fmt: skip
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(level, subifds=2, metadata=metadata, **options)
        for _ in range(2):
            rows, columns = (size // 2 for size in level.shape[:2])
            blocks = level[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, 3)
            level = blocks.mean((1, 3)).round().astype(np.uint8)
            writer.write(level, subfiletype=1, metadata=None, **options)


def beside(folder: Path) -> None:
    """Overview, tissue and three genes in one picture."""
    maps = MapStore(folder / "slide.maps")
    figure, axes = plt.subplots(1, 2 + len(GENES), figsize=(15, 3.4), layout="constrained")
    for axis, (title, name) in zip(axes, (("the slide", "overview.jpg"), ("its tissue", "tissue.png")), strict=False):
        axis.imshow(plt.imread(maps.folder / name), cmap="grey")
        axis.set_title(title)
    column_N, row_N = (np.floor(at / maps.bin_um).astype(int) for at in (maps.x_um_N, maps.y_um_N))
    width_um, height_um = (px * maps.about["he_um_per_px"] for px in maps.about["slide_px"])
    for axis, gene in zip(axes[2:], GENES, strict=True):
        grid = np.full((int(height_um / maps.bin_um) + 1, int(width_um / maps.bin_um) + 1), np.nan)
        grid[row_N, column_N] = maps.gene(gene)
        figure.colorbar(axis.imshow(grid, cmap="magma"), ax=axis, shrink=0.8)
        axis.set_title(gene)
    for axis in axes:
        axis.axis("off")
    figure.savefig(DOCS / "slides" / "found.jpg", dpi=80, pil_kwargs={"quality": 85})


def run_notebook(run: Path, slide: Path) -> None:
    """On a copy that says where things lie; the notebook itself says what a reader would."""
    path = DOCS / "slides.ipynb"
    notebook = nbformat.read(path, as_version=4)
    told = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        for name, where in (("runs/quickstart", run), ("slide.ome.tif", slide)):
            cell.source = cell.source.replace(f'"{name}"', repr(str(where)))
    with tempfile.TemporaryDirectory() as place:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": place}}).execute()
    for cell, source in zip(notebook.cells, told, strict=True):
        cell.source = source
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(notebook, path)


def tario(*words: object) -> None:
    subprocess.run([TARIO, *map(str, words)], check=True)


if __name__ == "__main__":
    main()
