"""Does a learning rate hold in width? The coordinate check, best rates by width, and AdamW beside Muon.

Small models of the config's kind, in muP (model/width.py) and in the standard parametrisation, whose base is the
config's own model: there the two are the same.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.bench.coordinates import STEPS, activations, draw_coordinates, sizes_of, slopes
from tario_jax.bench.width_runs import PARAMETRISATIONS, Batches, Results, Trainer, best_rate, model_of_width
from tario_jax.config import Config
from tario_jax.corpus.read import Corpus
from tario_jax.train.state import TrainState, to_devices

_NAMES = {"mup": "muP", "standard": "standard"}
_FURTHER = 6  # rates beyond those that were named, where the best is at their end


def check_coordinates(config: Config, corpus: Corpus, *, widths: list[int], seeds: int, workdir: Path,
                      figure: Path | None, say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Slopes of log(rms) over log(width) of all activations after steps 1, 2, 4, 8, on the batch that is trained on.

    The rate is the config's from the first step on. The table of genes starts at 0: what a random one reads out fades
    as the root of width, and would hide what is learned (Tensor Programs V, appendix D.2). Where the contents share it,
    they start at their totals.
    """
    constant = dataclasses.replace(config.optim, schedule="cosine", warmup_steps=0, final_share=1.0,
                                   decay_share=type(config.optim).decay_share)  # fmt: skip
    config = dataclasses.replace(config, optim=constant, train=dataclasses.replace(config.train, steps=1))
    batches = Batches.read(config, corpus)
    results = Results(workdir / "coordinates.json", config, corpus.seal)
    sizes: dict[str, dict[int, dict[int, list[dict[str, float]]]]] = {}
    for parametrisation in PARAMETRISATIONS:
        sizes[parametrisation] = {step: {} for step in STEPS}
        for width in widths:
            sized = dataclasses.replace(config, model=model_of_width(config.model, width, parametrisation))
            found = results.once(f"{parametrisation}, width {width}, {seeds} seeds",
                                 lambda sized=sized: _sizes_by_step(sized, batches, seeds))  # fmt: skip
            for step in STEPS:
                sizes[parametrisation][step][width] = found[str(step)]
            say(f"bench: {_NAMES[parametrisation]}, width {width}: measured")
    result: dict[str, Any] = {"widths": widths, "rate": config.optim.learning_rate, "seeds": seeds}
    for parametrisation in PARAMETRISATIONS:
        of = {str(step): slopes(sizes[parametrisation][step]) for step in STEPS}
        result[parametrisation] = {"slopes": of, "largest": max(abs(x) for step in of.values() for x in step.values())}
    if figure is not None:
        draw_coordinates(figure, sizes)
    result["table"] = coordinates_table(result)
    return result


def _sizes_by_step(config: Config, batches: Batches, seeds: int) -> dict[str, list[dict[str, float]]]:
    trainer = Trainer(config, batches)
    read = activations(config.model, batches.genes, config.data.patch_px, content=not config.data.one_shot)
    batch = batches.train[0]
    on_device = to_devices(batch, trainer.mesh)
    found: dict[str, list[dict[str, float]]] = {str(step): [] for step in STEPS}
    for seed in range(seeds):
        start = trainer.start(seed)
        start.parameters["gene_table"] = np.zeros_like(start.parameters["gene_table"])
        at_start = read(start.parameters, start.calibration, on_device)

        def watch(step: int, state: TrainState, at_start=at_start) -> None:
            if step in STEPS:
                found[str(step)].append(sizes_of(read(state.parameters, state.calibration, on_device), at_start))

        trainer.train(start, config.optim.learning_rate, [batch] * max(STEPS), watch)
    return found


def coordinates_table(result: dict[str, Any]) -> str:
    """The result of `check_coordinates` for people."""
    widths = ", ".join(map(str, result["widths"]))
    lines = [f"slope of log(rms) over log(width), widths {widths}, {result['seeds']} seeds, rate {result['rate']:g}",
             f"{'':<20}" + "".join(f"{_NAMES[name]:>{8 * len(STEPS)}}" for name in PARAMETRISATIONS),
             f"{'after step':<20}" + "".join(f"{step:>8}" for step in STEPS) * 2]  # fmt: skip
    for name in result["mup"]["slopes"]["1"]:
        lines.append(f"{name:<20}" + "".join(f"{result[parametrisation]['slopes'][str(step)][name]:>8.2f}"
                     for parametrisation in PARAMETRISATIONS for step in STEPS))  # fmt: skip
    largest = "".join(f"{result[name]['largest']:>{8 * len(STEPS)}.2f}" for name in PARAMETRISATIONS)
    return "\n".join([*lines, f"{'largest, absolute':<20}{largest}"])


def check_learning_rate(config: Config, corpus: Corpus, *, widths: list[int], rates: list[float], seeds: int,
                        workdir: Path, say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Validation loss by width and rate, the best rate of each width, and largest over smallest of these.

    "ratio" is None where a best rate has no worse one on both sides.
    """
    batches = Batches.read(config, corpus)
    results = Results(workdir / "learning_rate.json", config, corpus.seal)
    result: dict[str, Any] = {"widths": widths, "steps": config.train.steps, "seeds": seeds}
    for parametrisation in PARAMETRISATIONS:
        losses, best = {}, {}
        for width in widths:
            # at the base the two are one model
            kind = "mup" if width == config.model.width else parametrisation
            sized = dataclasses.replace(config, model=model_of_width(config.model, width, kind))
            measured = _Measured(sized, batches, results, f"{kind}, width {width}", seeds, say)
            losses[width] = _until_inside(measured.loss, rates)
            best[width] = best_rate(losses[width])
            say(f"bench: {_NAMES[parametrisation]}, width {width}: best rate {best[width][0]:.3g}")
        found = [rate for rate, _ in best.values()]
        result[parametrisation] = {
            "losses": losses, "best": {width: rate for width, (rate, _) in best.items()},
            "beyond": [width for width, (_, inside) in best.items() if not inside],
            "ratio": max(found) / min(found) if all(inside for _, inside in best.values()) else None,
        }  # fmt: skip
    result["table"] = rates_table(result)
    return result


def rates_table(result: dict[str, Any]) -> str:
    """The result of `check_learning_rate` for people."""
    lines = [f"nats per detection of validation after {result['steps']} steps, by learning rate; best: the parabola's "
             "through the three best"]  # fmt: skip
    for parametrisation in PARAMETRISATIONS:
        of = result[parametrisation]
        rates = sorted({rate for losses in of["losses"].values() for rate in losses})
        lines.append(f"{_NAMES[parametrisation]:<10}" + "".join(f"{rate:>10.3g}" for rate in rates) + f"{'best':>10}")
        for width, losses in of["losses"].items():
            told = "".join(f"{losses[rate]:>10.4f}" if rate in losses else f"{'':>10}" for rate in rates)
            lines.append(f"{width:<10}{told}{of['best'][width]:>10.3g}")
        ratio = "not known: the best is at the end of the rates" if of["ratio"] is None else f"{of['ratio']:.2f}"
        lines.append(f"largest over smallest best rate: {ratio}")
    return "\n".join(lines)


def check_optimisers(config: Config, corpus: Corpus, *, rates: list[float], seeds: int, workdir: Path,
                     say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Validation loss of AdamW and of Muon at equal steps, each at the best of the rates."""
    batches = Batches.read(config, corpus)
    results = Results(workdir / "optimisers.json", config, corpus.seal)
    result: dict[str, Any] = {"steps": config.train.steps, "seeds": seeds}
    for name in ("adamw", "muon"):
        muon_rate = config.optim.muon_rate if name == "muon" else type(config.optim).muon_rate  # adamw reads none
        optim = dataclasses.replace(config.optim, optimiser=name, muon_rate=muon_rate)
        chosen = dataclasses.replace(config, optim=optim)
        losses = _until_inside(_Measured(chosen, batches, results, name, seeds, say).loss, rates)
        rate = min(losses, key=lambda rate: _or_inf(losses[rate]))
        result[name] = {"losses": losses, "rate": rate, "loss": losses[rate]}
    result["difference"] = result["muon"]["loss"] - result["adamw"]["loss"]
    tried = sorted({rate for name in ("adamw", "muon") for rate in result[name]["losses"]})
    lines = [f"nats per detection of validation after {result['steps']} steps, by learning rate",
             f"{'':<10}" + "".join(f"{rate:>10.3g}" for rate in tried) + f"{'best':>10}"]  # fmt: skip
    for name in ("adamw", "muon"):
        losses = result[name]["losses"]
        told = "".join(f"{losses[rate]:>10.4f}" if rate in losses else f"{'':>10}" for rate in tried)
        lines.append(f"{name:<10}{told}{result[name]['loss']:>10.4f}")
    result["table"] = "\n".join([*lines, f"muon less adamw: {result['difference']:+.4f} nats per detection"])
    return result


class _Measured:
    """Losses of one model by rate, each trained once; the model is compiled when the first is."""

    def __init__(self, config: Config, batches: Batches, results: Results, name: str, seeds: int, say):
        self._config, self._batches, self._results = config, batches, results
        self._name, self._seeds, self._say = name, seeds, say
        self._trainer: Trainer | None = None
        self._starts: dict[int, TrainState] = {}

    def loss(self, rate: float) -> float:
        """Mean over the seeds."""
        name = f"{self._name}, rate {rate:g}"
        found = [self._results.once(f"{name}, seed {seed}", lambda seed=seed: self._run(rate, seed))
                 for seed in range(self._seeds)]  # fmt: skip
        self._say(f"bench: {self._name}, rate {rate:.3g}: {np.mean(found):.4f}")
        return float(np.mean(found))

    def _run(self, rate: float, seed: int) -> float:
        if self._trainer is None:
            self._trainer = Trainer(self._config, self._batches)
        if seed not in self._starts:
            self._starts[seed] = self._trainer.start(seed)
        return self._trainer.validation(self._trainer.train(self._starts[seed], rate, self._batches.train))


def _until_inside(loss: Callable[[float], float], rates: list[float]) -> dict[float, float]:
    """Losses at these rates, and at further ones of the same spacing while the best is the first or the last."""
    losses = {rate: loss(rate) for rate in sorted(rates)}
    for _ in range(_FURTHER):
        tried = sorted(losses, key=float)
        best = min(tried, key=lambda rate: _or_inf(losses[rate]))
        if best not in (tried[0], tried[-1]):
            break
        further = tried[0] ** 2 / tried[1] if best == tried[0] else tried[-1] ** 2 / tried[-2]
        losses[further] = loss(further)
    return dict(sorted(losses.items()))


def _or_inf(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
