"""How large a model's activations are, and how that goes with its width: the coordinate check of muP.

Activations are read from outside: a decoder of the first l layers gives the stream after them, and the same with its
last MLP silenced the branch of attention. So the model has no second way through it that only a check would take.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tario_jax.config import ModelConfig
from tario_jax.evaluate.figures import INK, RULE, SOFT, blank_figure, plain_axes, save_figure
from tario_jax.model.build import Tree, build
from tario_jax.model.model import Tario, visibilities
from tario_jax.tokens.batch import Batch

STEPS = (1, 2, 4, 8)
COLOURS = ("#0b5cad", "#c2571a", "#2b8a57", "#7a4fa3", "#a08a13", "#b03a5b", "#3d8f9c", "#6b7683", "#1d2733", "#d08bb5")


def activations(config: ModelConfig, genes: int, patch_px: int, *, content: bool) -> Callable:
    """A jitted (parameters, calibration, batch) -> {name: float32 array}, of a model on one device."""
    patterns = [tuple(config.pattern[number % len(config.pattern)] for number in range(layers))
                for layers in range(1, config.layers + 1)]  # fmt: skip
    of_first = [build(dataclasses.replace(config, layers=len(pattern), pattern=pattern), genes, patch_px,
                      content=content) for pattern in patterns]  # fmt: skip

    def read(parameters: Tree, calibration: Tree, batch: Batch) -> dict[str, jax.Array]:
        def first(layers: int, *, silent: bool = False) -> Tario:
            weights = {name: x[:layers] for name, x in parameters["decoder"].items()}
            if silent:
                weights["mlp_out"] = weights["mlp_out"].at[-1].set(0.0)
            return of_first[layers - 1].merge({**parameters, "decoder": weights}, calibration)

        model = first(config.layers)
        found = _entering(model, batch)
        seen, queries = jnp.concatenate([found[name] for name in found if name != "queries"], 1), found["queries"]
        x = jnp.concatenate([seen, queries], 1)
        for layer in range(1, config.layers + 1):
            read, after = (jnp.concatenate(_decoded(first(layer, silent=silent), batch, seen, queries), 1)
                           for silent in (True, False))  # fmt: skip
            found[f"attention {layer}"], found[f"MLP {layer}"], found[f"stream {layer}"] = read - x, after - read, after
            x = after
        gene = model(batch).gene_BxQxr
        found["gene features"] = gene / model.gene_gain  # as their tables see them
        found["logits"] = (gene @ model.gene_table[...].T + model.gene_bias[...])[..., :genes]
        return {name: value.astype(jnp.float32) for name, value in found.items()}

    return jax.jit(read)


def _entering(model: Tario, batch: Batch) -> dict[str, jax.Array]:
    """What the decoder is given, [B, tokens, d] each."""
    he, queries = model.encoded(batch)
    found = {"H&E tokens": he}
    if model.reads_content:
        found["contents"], queries = model.with_contents(batch, queries)
    found["queries"] = queries
    return {name: x.reshape(len(x), -1, x.shape[-1]) for name, x in found.items()}


def _decoded(model: Tario, batch: Batch, seen: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
    bins_xy_um = batch.bin_xy_um_BxTxNx2.reshape(len(seen), -1, 2)
    xy_um = [batch.patch_xy_um_BxTxPx2.reshape(len(seen), -1, 2), *[bins_xy_um] * model.reads_content]
    visibility = {kind: visibilities(batch, model.reads_content, local=kind == "local")
                  for kind in set(model.config.pattern)}  # fmt: skip
    return model.decoder(seen, queries, jnp.concatenate(xy_um, 1), bins_xy_um, visibility)


def sizes_of(now: dict[str, jax.Array], start: dict[str, jax.Array]) -> dict[str, float]:
    """Root mean squares of activations; of the logits, of their change since the start."""
    seen = {name: x for name, x in now.items() if name != "logits"} | {
        "change of logits": now["logits"] - start["logits"]
    }
    return {name: float(jnp.sqrt(jnp.mean(jnp.square(x)))) for name, x in seen.items()}


def slopes(sizes: dict[int, list[dict[str, float]]]) -> dict[str, float]:
    """d log(rms) / d log(width) of every activation, by least squares; sizes: width -> one dict a seed."""
    widths = sorted(sizes)
    names = sizes[widths[0]][0]
    logs = {name: [np.mean([np.log(of_seed[name]) for of_seed in sizes[width]]) for width in widths] for name in names}
    return {name: float(np.polyfit(np.log(widths), values, 1)[0]) for name, values in logs.items()}


def draw_coordinates(path: Path, sizes: dict[str, dict[int, dict[int, list[dict[str, float]]]]]) -> None:
    """Size against width of every activation, a panel a step; above standard, below muP. Seeds are averaged.

    sizes: parametrisation -> step -> width -> one dict a seed. Raises `InputError` where matplotlib is not installed.
    """
    steps = sorted(sizes["mup"])
    figure = blank_figure(3.1 * len(steps) + 1.9, 6.6)
    grid = figure.subplots(2, len(steps), squeeze=False, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for row, (parametrisation, title) in zip(grid, (("standard", "standard"), ("mup", "muP")), strict=True):
        for axis, step in zip(row, steps, strict=True):
            of_width = sizes[parametrisation][step]
            widths = sorted(of_width)
            for name, (colour, style) in _looks(of_width[widths[0]][0]).items():
                at_start = np.exp(np.mean([np.log(of_seed[name]) for of_seed in of_width[widths[0]]]))
                y = [np.exp(np.mean([np.log(of_seed[name]) for of_seed in of_width[width]])) for width in widths]
                (handles[name],) = axis.plot(
                    widths, np.divide(y, at_start), color=colour, linestyle=style, linewidth=1.4
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.set_xticks(widths, [str(width) for width in widths])
            axis.axhline(1, color=RULE, linewidth=1, zorder=0)
            axis.set_title(f"{title} · step {step}", fontsize=11, color=INK, loc="left")
            plain_axes(axis)
        row[0].set_ylabel(f"rms, over that at width {widths[0]}", fontsize=10, color=SOFT)
    for axis in grid[-1]:
        axis.set_xlabel("width", fontsize=10, color=SOFT)
    figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)


def _looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour for a kind of activation, a style for its layer."""
    styles = ("-", "--", ":", "-.")
    kinds = list(dict.fromkeys(name.rstrip(" 0123456789") for name in names))
    looks = {}
    for name in names:
        kind, layer = name.rstrip(" 0123456789"), name.split()[-1]
        number = int(layer) - 1 if layer.isdecimal() else 0
        looks[name] = (COLOURS[kinds.index(kind) % len(COLOURS)], styles[number % len(styles)])
    return looks
