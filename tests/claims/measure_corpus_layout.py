"""What chunks, shards and codecs cost: `measure_corpus_layout.py OUT.json`.

Virtual sections of 512 µm with all genes, written by each candidate and read in windows of 256 µm at random places,
with no cache. H&E: zarr3 (zstd) by chunk, beside TensorStore's JPEG driver; r is that of ridge on features of the image
as it comes back, over 500 genes of highest mean. Detections: 6 bytes each before compression.
"""

import functools
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorstore as ts

from tario_jax.corpus import layout
from tario_jax.corpus.place import Place
from tario_jax.evaluate.bins import grid_counts, grid_places
from tario_jax.evaluate.features import section_features
from tario_jax.evaluate.metrics import mean_defined, pearson_by_gene
from tario_jax.evaluate.ridge import Spread, fit_ridge, fit_scaler
from tario_jax.virtual.patients import FIRST_NUMBER
from tario_jax.virtual.section import Settings, simulate_section

TRAIN, TEST, WINDOWS, WINDOW_PX, BIN_UM, SIDE, GENES = 24, 8, 150, 512, 36.0, 14, 500
HE_CHUNKS, HE_LEVELS, QUALITIES = (128, 256, 512), (1, 3, 9), (75, 90)
TABLE_CHUNKS = (8192, 32768, 131072)


def main() -> None:
    numbers = [*range(TRAIN), *(FIRST_NUMBER["held_out"] + k for k in range(TEST))]
    sections = []
    for number in numbers:
        sections.append(simulate_section(number, "core", Settings()))
        print(f"layout: {len(sections)}/{len(numbers)} sections", flush=True)
    counts = [grid_counts(one.detections, len(Settings().genes.panel), SIDE, SIDE, BIN_UM) for one in sections]
    top = np.argsort(-sum(found.sum(0) for found in counts[:TRAIN]))[:GENES]
    counts = [found[:, top].astype(float) for found in counts]
    lines, result = ["H&E                       bytes/px  ms/window  PSNR dB  ridge r"], {"he": {}, "detections": {}}
    candidates = {
        **{f"zstd {level}, chunk {chunk}": functools.partial(_zarr, chunk=chunk, level=level)
           for chunk in HE_CHUNKS for level in HE_LEVELS if level == 3 or chunk == 256},
        **{f"JPEG {quality}, chunk 256": functools.partial(_jpeg, quality=quality) for quality in QUALITIES},
    }  # fmt: skip
    raw_r = None
    for name, write in candidates.items():
        found, decoded = _measure_he([one.he for one in sections], write)
        if raw_r is None or name.startswith("JPEG"):
            raw_r = found["ridge_r"] = _ridge_r(sections, decoded, counts)
        else:
            found["ridge_r"] = raw_r  # the same pixels come back
        result["he"][name] = found
        lines.append(f"{name:<25} {found['bytes_per_px']:>8.3f} {found['ms_per_window']:>10.2f} "
                     f"{found['psnr_db']:>8.1f} {found['ridge_r']:>8.4f}")  # fmt: skip
        print(lines[-1], flush=True)
    lines.append("detections                bytes each  ms/window")
    for chunk in TABLE_CHUNKS:
        found = result["detections"][f"chunk {chunk}"] = _measure_table(sections, chunk)
        name = f"zstd 3, chunk {chunk:,}"
        lines.append(f"{name:<25} {found['bytes_each']:>10.2f} {found['ms_per_window']:>10.2f}")
        print(lines[-1], flush=True)
    chosen, jpeg = result["he"]["zstd 3, chunk 128"], result["he"]["JPEG 90, chunk 256"]
    result["r_lost_by_jpeg"] = chosen["ridge_r"] - jpeg["ridge_r"]
    result["jpeg_time_of_zstd"] = jpeg["ms_per_window"] / chosen["ms_per_window"]
    result["raw_bytes_a_detection"] = 6
    result["table"] = "\n".join(lines)
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


def _zarr(place: Place, image: np.ndarray, chunk: int, level: int) -> None:
    chunks, codecs = dict(layout.CHUNKS), list(layout._CODECS)
    layout.CHUNKS["he"] = ((chunk, chunk, 3), (4096, 4096, 3))
    layout._CODECS[1] = {"name": "zstd", "configuration": {"level": level}}
    layout.write_array(place / "he", image)
    layout.CHUNKS.update(chunks)
    layout._CODECS[:] = codecs


def _jpeg_spec(place: Place) -> dict:
    return {"driver": "neuroglancer_precomputed", "kvstore": place.kvstore}


def _jpeg(place: Place, image: np.ndarray, quality: int) -> None:
    height, width, _ = image.shape
    spec = _jpeg_spec(place / "he") | {
        "multiscale_metadata": {"data_type": "uint8", "num_channels": 3, "type": "image"},
        "scale_metadata": {"size": [width, height, 1], "chunk_size": [256, 256, 1], "resolution": [500, 500, 500],
                           "encoding": "jpeg", "jpeg_quality": quality},
    }  # fmt: skip
    ts.open(spec, create=True).result().write(image.transpose(1, 0, 2)[:, :, None, :]).result()


def _open(place: Place) -> ts.TensorStore:
    """[H, W, 3], without a cache."""
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    if (place / "he/info").exists():
        store = ts.open(_jpeg_spec(place / "he"), open=True, read=True, context=context).result()
        return store[:, :, 0, :].transpose([1, 0, 2])
    return ts.open(layout.array_spec(place / "he"), open=True, read=True, context=context).result()


def _measure_he(images: list[np.ndarray], write) -> tuple[dict[str, float], list[np.ndarray]]:
    with tempfile.TemporaryDirectory() as folder:
        stores = []
        for k, image in enumerate(images):
            write(Place(folder) / str(k), image)
            stores.append(_open(Place(folder) / str(k)))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        decoded = [np.ascontiguousarray(store.read().result()) for store in stores]
        rng = np.random.default_rng(0)
        began = time.process_time()
        for _ in range(WINDOWS):
            store = stores[rng.integers(len(stores))]
            y, x = (int(rng.integers(0, extent - WINDOW_PX)) for extent in store.shape[:2])
            store[y : y + WINDOW_PX, x : x + WINDOW_PX].read().result()
        seconds = time.process_time() - began
    error = np.mean([np.mean((a.astype(float) - b) ** 2) for a, b in zip(images, decoded, strict=True)])
    return {"bytes_per_px": size / sum(image.size / 3 for image in images), "ms_per_window": 1e3 * seconds / WINDOWS,
            "psnr_db": float(10 * np.log10(255**2 / error)) if error else float("inf")}, decoded  # fmt: skip


def _ridge_r(sections, images: list[np.ndarray], counts: list[np.ndarray]) -> float:
    places = grid_places(SIDE, SIDE, BIN_UM)
    features = [section_features(image, one.he_um_per_px, *places, BIN_UM)[0]
                for one, image in zip(sections, images, strict=True)]  # fmt: skip
    train = features[:TRAIN]
    ridge = fit_ridge(
        train,
        counts[:TRAIN],
        [str(k) for k in range(TRAIN)],
        np.arange(GENES),
        fit_scaler([Spread.of(one) for one in train]),
    )
    by_section = [pearson_by_gene(x, ridge(f)) for x, f in zip(counts[TRAIN:], features[TRAIN:], strict=True)]
    return float(np.nanmean(mean_defined(np.stack(by_section))))


def _measure_table(sections, chunk: int) -> dict[str, float]:
    from tario_jax.corpus.stored_section import Section
    from tario_jax.corpus.write import write_section

    before = layout.CHUNKS["place_and_gene"]
    layout.CHUNKS["place_and_gene"] = ((chunk, 3), (4194304, 3))
    panel = Settings().genes.panel
    with tempfile.TemporaryDirectory() as folder:
        size, opened = 0, []
        for section in sections[:12]:
            write_section(folder, panel, "virtual", section)
            place = Place(folder) / f"sections/{section.section_id}"
            table = place.local / "detections/place_and_gene"
            size += sum(path.stat().st_size for path in table.rglob("*") if path.is_file())
            opened.append(Section(place, layout.read_json(place / "seal.json")["record"], "", len(panel)))
        context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
        stores = [ts.open(layout.array_spec(one.place / "detections/place_and_gene"), open=True, read=True,
                          context=context).result() for one in opened]  # fmt: skip
        rng = np.random.default_rng(0)
        boxes = [(int(rng.integers(len(opened))), *rng.uniform(0, 256, 2)) for _ in range(WINDOWS)]
        runs = [(k, [run for *_, run in opened[k].tile_runs(x, y, 256, 256)]) for k, x, y in boxes]
        began = time.process_time()
        for k, some in runs:
            for reading in [stores[k][run].read() for run in some]:
                reading.result()
        seconds = time.process_time() - began
    layout.CHUNKS["place_and_gene"] = before
    return {"bytes_each": size / sum(len(one.detections) for one in sections[:12]),
            "ms_per_window": 1e3 * seconds / WINDOWS}  # fmt: skip


if __name__ == "__main__":
    main()
