"""How fast batches are made: beside reading the same bytes bare, and beside a dataset that opens its store per item.

All three read the same windows, in turns, each with a cache of its own. Windows per core-second are windows over the
processor seconds of the whole process, threads of the libraries included.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorstore as ts

from tario_jax.config import Config, InputError
from tario_jax.corpus.layout import DETECTION_TILE_UM, array_spec
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import split_corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource, Draw, load_batches

H100_BF16_FLOPS = 989.4e12
"""Dense bf16 peak of one H100 SXM, of the vendor's data sheet."""
_PIXELS, _TABLE = "he", "detections/place_and_gene"


@dataclasses.dataclass(frozen=True)
class Rate:
    """Medians over rounds."""

    windows_per_core_second: float
    windows_per_second: float
    megabytes_per_second: float  # decoded, of wall time


def bench_loader(config: Config, corpus: Corpus, *, batches: int, rounds: int, training_steps: int, devices: int,
                 utilisation: float, say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Rates of the three loaders, cores for a consumer, and the share of time that a training step waits.

    batches: of each loader and round; training_steps: of the config's model on this machine, the first not counted
    (0 = none); devices, utilisation: so many H100 that train the config's model at this share of their peak.
    """
    sections = split_corpus(corpus, config.split).train
    for section in sections:
        if not section.has_detections:
            raise InputError(f"section {section.id!r}: holds no detections, which the loaders are compared on; name a "
                             "corpus of detections (--corpus)")  # fmt: skip
    began = time.perf_counter()
    layout = corpus_layout(sections, config.data, len(corpus.panel))
    source = BatchSource(sections, config.data, layout, steps=1 + max(batches * rounds, training_steps))
    source[0]
    start_seconds = time.perf_counter() - began
    for section in sections:  # once a run, not once a window: none of the loaders' rates holds it
        section.begin()()
    say(f"bench: first batch after {start_seconds:.1f} s; {rounds} rounds of {batches} batches each")
    loaders = {
        "tario": lambda t: source[t],
        "tensorstore": _Bare(source, sections),
        "zarr_per_item": _PerItem(source, config),
    }
    for loader in loaders.values():
        loader(0)
    rates: dict[str, list[Rate]] = {name: [] for name in loaders}
    for number in range(rounds):
        steps = range(1 + number * batches, 1 + (number + 1) * batches)
        drawn = [draw for t in steps for row in source.draws(t) for draw in row]
        size = sum(_bytes(draw, config.data.window_um) for draw in drawn)
        for name, loader in loaders.items():
            rates[name].append(_rate(loader, steps, len(drawn), size))
        say(f"bench: round {number + 1}/{rounds}  " + "  ".join(
            f"{name} {found[-1].windows_per_core_second:.1f}/core" for name, found in rates.items()))  # fmt: skip
    result: dict[str, Any] = {name: _median(found) for name, found in rates.items()}
    shares = [ours.windows_per_core_second / bare.windows_per_core_second
              for ours, bare in zip(rates["tario"], rates["tensorstore"], strict=True)]  # fmt: skip
    result["share_of_tensorstore"] = statistics.median(shares)
    result["start_seconds"] = start_seconds
    result["consumer"] = _consumer(config, corpus, result["tario"], devices, utilisation)
    if training_steps:
        result["wait_share"], result["step_seconds"] = _wait_share(config, corpus, source, training_steps, say)
    result["table"] = table(result)
    return result


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{'':<22}{'windows/s a core':>18}{'windows/s':>12}{'MB/s':>9}"]
    for name, title in (("tario", "tario batches"), ("tensorstore", "tensorstore, bare"),
                        ("zarr_per_item", "zarr opened per item")):  # fmt: skip
        rate = result[name]
        lines.append(f"{title:<22}{rate['windows_per_core_second']:>18.1f}{rate['windows_per_second']:>12.1f}"
                     f"{rate['megabytes_per_second']:>9.0f}")  # fmt: skip
    consumer = result["consumer"]
    lines += [
        f"tario beside bare reads, a core: {result['share_of_tensorstore']:.2f}",
        f"{consumer['devices']} H100 at {consumer['utilisation']:.0%} of {consumer['flops_per_window']:.3g} FLOPs a "
        f"window ask for {consumer['windows_per_second']:.0f} windows/s: {consumer['cores']:.0f} cores keep up",
    ]
    if "wait_share" in result:
        lines.append(f"a training step of {result['step_seconds']:.1f} s waits {result['wait_share']:.2%} of the time")
    return "\n".join(lines)


def _rate(loader: Callable[[int], Any], steps: Iterable[int], windows: int, size: int) -> Rate:
    wall, core = time.perf_counter(), time.process_time()
    for t in steps:
        loader(t)
    wall, core = time.perf_counter() - wall, time.process_time() - core
    return Rate(windows / core, windows / wall, size / wall / 1e6)


def _median(rates: list[Rate]) -> dict[str, float]:
    return {field.name: statistics.median(getattr(rate, field.name) for rate in rates)
            for field in dataclasses.fields(Rate)}  # fmt: skip


def _parts(section: Section, x_um: float, y_um: float, side_um: float) -> list[tuple[str, tuple[slice, ...]]]:
    """The slices of stored arrays that a window needs: its pixels, and the detections of the tiles that it touches."""
    height_px, width_px = section.he_shape_px
    step = section.he_um_per_px
    rows, columns = (slice(max(int(at // step), 0), min(int(-(-(at + side_um) // step)), size))
                     for at, size in ((y_um, height_px), (x_um, width_px)))  # fmt: skip
    return [
        (_PIXELS, (rows, columns)),
        *((_TABLE, (run,)) for *_, run in section.tile_runs(x_um, y_um, side_um, side_um)),
    ]


def _bytes(draw: Draw, side_um: float) -> int:
    """Decoded bytes of a window's parts: 3 a pixel, 6 a detection."""
    sizes = {_PIXELS: 3, _TABLE: 6}
    return sum(
        sizes[name] * int(np.prod([max(part.stop - part.start, 0) for part in index]))
        for name, index in _parts(draw.section, draw.x_um, draw.y_um, side_um)
    )


class _Bare:
    """The same reads through TensorStore, all of a batch at once, and nothing done with them."""

    def __init__(self, source: BatchSource, sections: list[Section]):
        self._source, self._context = source, ts.Context({"cache_pool": {"total_bytes_limit": 256 << 20}})
        self._open = functools.cache(self._opened)
        for section in sections:
            self._open(section, _PIXELS), self._open(section, _TABLE)

    def _opened(self, section: Section, name: str) -> ts.TensorStore:
        return ts.open(array_spec(section.place / name), open=True, read=True, context=self._context).result()

    def __call__(self, t: int) -> None:
        side_um = self._source.data.window_um
        reading = [self._open(draw.section, name)[index].read()
                   for row in self._source.draws(t) for draw in row
                   for name, index in _parts(draw.section, draw.x_um, draw.y_um, side_um)]  # fmt: skip
        for one in reading:
            one.result()


class _PerItem:
    """What is often written first: a map-style dataset whose item opens the store, reads its window, and counts."""

    def __init__(self, source: BatchSource, config: Config):
        try:
            import zarr
        except ImportError:
            raise InputError("bench loader: its peer needs zarr; pip install 'tario-jax[io]'") from None
        self._source, self._bin_um, self._zarr = source, config.data.bin_um, zarr

    def __call__(self, t: int) -> list[tuple[np.ndarray, ...]]:
        return [self._item(draw) for row in self._source.draws(t) for draw in row]

    def _item(self, draw: Draw) -> tuple[np.ndarray, ...]:
        section, side_um = draw.section, self._source.data.window_um
        he, table = (self._zarr.open_array(str(section.place / name), mode="r") for name in (_PIXELS, _TABLE))
        offset = self._zarr.open_array(str(section.place / "detections/offset"), mode="r")[:]
        (_, pixels), *runs = _parts(section, draw.x_um, draw.y_um, side_um)
        found = [np.zeros((0, 3))]
        columns = int(np.ceil(section.width_um / DETECTION_TILE_UM))
        for _, (run,) in runs:
            rows_Dx3 = table[run].astype(np.float64)
            tile_D = np.searchsorted(offset, np.arange(run.start, run.stop), side="right") - 1
            rows_Dx3[:, 0] = rows_Dx3[:, 0] / 1024 + tile_D % columns * DETECTION_TILE_UM - draw.x_um
            rows_Dx3[:, 1] = rows_Dx3[:, 1] / 1024 + tile_D // columns * DETECTION_TILE_UM - draw.y_um
            found.append(rows_Dx3)
        rows_Dx3 = np.concatenate(found)
        inside_D = ((rows_Dx3[:, :2] >= 0) & (rows_Dx3[:, :2] < side_um)).all(1)
        bins_Dx2 = (rows_Dx3[inside_D, :2] // self._bin_um).astype(np.int64)
        key_D = (bins_Dx2[:, 1] * 100_000 + bins_Dx2[:, 0]) * 100_000 + rows_Dx3[inside_D, 2].astype(np.int64)
        return he[pixels], *np.unique(key_D, return_counts=True)


def _consumer(config: Config, corpus: Corpus, ours: dict[str, float], devices: int, utilisation: float):
    """What so many H100 would take: 6 FLOPs a trunk parameter and token, attention and gene head not counted."""
    from tario_jax.model.build import model_sizes
    from tario_jax.tokens.batch import square_bins_per_tile

    data = config.data
    tiles = round(data.window_um / data.tile_um) ** 2
    bins = square_bins_per_tile(data) * (1 if data.one_shot else 2)
    tokens = tiles * (round(data.tile_um / data.patch_um) ** 2 + bins)
    flops = 6 * model_sizes(config, len(corpus.panel)).trunk * tokens
    rate = devices * utilisation * H100_BF16_FLOPS / flops
    return {"devices": devices, "utilisation": utilisation, "flops_per_window": flops, "windows_per_second": rate,
            "cores": rate / ours["windows_per_core_second"]}  # fmt: skip


def _wait_share(config: Config, corpus: Corpus, source: BatchSource, steps: int, say) -> tuple[float, float]:
    """(share of the time that the loop waits for its next batch, seconds a step), the first step not counted."""
    import jax

    from tario_jax.bench.training_step import training_step
    from tario_jax.parallel.mesh import make_mesh
    from tario_jax.train.state import to_devices

    mesh = make_mesh(config.mesh)
    state, train_step = training_step(config, len(corpus.panel), source.layout.frozen_features, mesh)
    batches = load_batches(source, first=0, prefetch=config.data.prefetch, workers=config.data.workers)
    state, metrics = train_step(state, to_devices(next(batches), mesh))
    jax.block_until_ready(metrics)
    say("bench: the training step is compiled")
    began, waited = time.perf_counter(), 0.0
    for number in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, metrics = train_step(state, to_devices(batch, mesh))
        jax.block_until_ready(metrics)
        say(f"bench: training step {number + 1}/{steps}  {(time.perf_counter() - began) / (number + 1):.1f} s each")
    seconds = time.perf_counter() - began
    return waited / seconds, seconds / steps
