"""Step 0 from a checkpoint: with another panel, other bins or windows, other tissue; the same model.

A gene that both panels know takes its rows and its bias from the checkpoint, as they are. A new gene starts where it
says nothing: at the mean row of the others, by their frequency, with which its share of a bin stays about constant, and
with the bias of its frequency in training, on the scale of the others' biases. The statistics of the stain are the
checkpoint's, since the H&E encoder learnt with them. Depths of sections are told by how far they lie from the mean of
training, in the checkpoint's deviations: another assay is deeper as a whole. The one number that is fitted is the bias
of the density of detections: a panel of fewer genes or a deeper assay moves it by more than many steps could, and its
best value follows from the detections that the model expects in training windows and those that are there.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.nnx import traversals
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tario_jax.config import InputError, StartConfig
from tario_jax.config_files import expand
from tario_jax.model.build import Tree, build_of
from tario_jax.panel import GeneMatch, Panel, match_genes
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train.calibrate import PADDING_BIAS, depths, gene_shares, gene_weights
from tario_jax.train.checkpoint import Checkpoints, find_checkpoint
from tario_jax.train.provenance import Provenance
from tario_jax.train.run import Run
from tario_jax.train.state import make_totals, to_devices

# of a model, what may differ: how the same numbers are computed, how a seed's parameters begin, how genes are weighed
_FREE = ("attention", "attention_block", "compute_dtype", "remat", "loss_chunk", "loss_gene_chunk", "zero_read_out",
         "reach_um", "principal_start", "rare_gene_weight")  # fmt: skip
_DATA = ("patch_px", "he_um_per_px", "frozen_encoder")  # what a token of H&E is
_OF_GENES = ("gene_dim", "base_gene_dim", "tie_genes", "total_likelihood")  # what a model of H&E alone does not have
_PARTS_OF_HE = ("he_encoder", "decoder")  # and what both have
_NAMED = 3  # genes in a line


@dataclasses.dataclass(frozen=True)
class StartPoint:
    """The checkpoint that a run starts from."""

    named: str  # as the config does
    workdir: Path
    step: int
    provenance: Provenance

    @classmethod
    def find(cls, config: StartConfig, say: Callable[[str], None]) -> "StartPoint":
        """Raises `InputError` where there is no whole checkpoint. All processes are to call it."""
        named, path = f"--config.start.checkpoint={config.checkpoint}", Path(expand(config.checkpoint))
        if path.name.isdecimal() and path.parent.name == "checkpoints":
            workdir, step = path.parent.parent, int(path.name)
            with Checkpoints(workdir) as checkpoints:
                fault = checkpoints.damage(step) if path.is_dir() else "no such folder"
                if fault is not None:
                    kept = ", ".join(map(str, checkpoints.steps)) or "none"
                    raise InputError(f"{named}: {fault}; expected one of this workdir's steps ({kept}), or the "
                                     "workdir, for its newest whole one")  # fmt: skip
        else:
            workdir, step = find_checkpoint(path, say)
        with Checkpoints(workdir) as checkpoints:
            return cls(named, workdir, step, checkpoints.provenance(step))

    @property
    def origin(self) -> dict[str, Any]:
        return self.provenance.as_start(self.workdir.resolve().name, self.step)

    @property
    def learns(self) -> str:
        return self.provenance.config.train.learns

    def of_he(
        self, run: Run, begin: Callable[[Run], tuple[Tree, Tree]], say: Callable[[str], None]
    ) -> tuple[Tree, Tree]:
        """Parameters and calibration of step 0 from a checkpoint that learnt from H&E alone.

        H&E encoder and decoder, with the statistics of stain and texture, are the checkpoint's; all else, what reads
        stored features among it, is as `begin` gives it, from the seed. A run that learns from H&E alone itself takes
        everything. Raises `InputError` as `parameters` does.
        """
        if run.config.start.trained != "all":
            raise InputError(f"{self.named}: learnt from H&E alone, and what asks for counts would stay as it begins "
                             f"with start.trained={run.config.start.trained}; set start.trained=all")  # fmt: skip
        self._refuse_other_model(run)
        self._refuse_seen(run)
        built = build_of(self.provenance.config, len(self.provenance.panel), self.provenance.layout.frozen_features)
        with Checkpoints(self.workdir) as checkpoints:
            found, found_calibration = checkpoints.model(self.step, built, run.mesh)
        line = (
            f"starts from step {self.step} of {self.workdir}, which learnt from {self.provenance.trained_on} H&E alone"
        )
        if run.config.train.learns == "he":
            say(line)
            return found, found_calibration
        parameters, calibration = begin(run)
        say(f"{line}: its H&E encoder and decoder, and the statistics of the stain; all else begins as from a seed")
        learnt, statistics = dict(found["he_encoder"]), dict(found_calibration["he_encoder"])
        if "frozen" in learnt:  # stored features, which it did not read
            learnt["frozen"] = parameters["he_encoder"]["frozen"]
            statistics["frozen"] = calibration["he_encoder"]["frozen"]
        calibration = {**calibration, "he_encoder": statistics}
        return {**parameters, **{part: found[part] for part in _PARTS_OF_HE}, "he_encoder": learnt}, calibration

    def parameters(self, run: Run, source: BatchSource, say: Callable[[str], None]) -> tuple[Tree, Tree]:
        """Parameters and calibration of the run's step 0, each where the run's mesh wants it.

        source: windows of training, this process's rows of them. Raises `InputError` where the checkpoint's model is
        another one, the panels share no gene, or the checkpoint has seen patients that the run holds out.
        """
        if run.config.train.learns == "he":
            raise InputError(f"{self.named}: learnt from counts, and train.learns=he begins before that; expected a "
                             "checkpoint of train.learns=he, or none")  # fmt: skip
        self._refuse_other_model(run)
        self._refuse_seen(run)
        ours, theirs = run.provenance, self.provenance
        match = _each_once(match_genes(ours.panel, theirs.panel), ours.panel)
        if not (match.position_S >= 0).any():
            raise InputError(
                f"{self.named}: knows none of the corpus's {len(ours.panel)} genes ({', '.join(ours.panel.symbols[:3])}"
                f", …), but {len(theirs.panel)} others ({', '.join(theirs.panel.symbols[:3])}, …); expected the same "
                "symbols or Ensembl ids"
            )
        built = build_of(theirs.config, len(theirs.panel), theirs.layout.frozen_features)
        with Checkpoints(self.workdir) as checkpoints:
            found, calibration = checkpoints.model(self.step, built, run.mesh)
        found = dict(traversals.flatten_mapping(found))
        wanted = dict(traversals.flatten_mapping(run.built.abstract()[0]))
        missing = [path for path in wanted if path not in found]
        parameters = {path: found[path] for path in wanted if path in found}
        if missing:
            start = dict(traversals.flatten_mapping(run.built.initialise(run.config.train.seed, run.mesh)[0]))
            parameters |= {path: start[path] for path in missing}
        shares_G = gene_shares(list(run.split.train), len(ours.panel))
        parameters |= self._of_genes(run, found, match, shares_G)
        calibration = {name: value for name, value in calibration.items() if name != "gene_weight"}
        places = run.built.shardings(run.mesh)[1]
        bias_G = _whole(parameters["gene_bias",], run.mesh)[: len(ours.panel)].astype(np.float64)
        share_G = np.exp(bias_G - bias_G.max())  # by which the model itself reads the depth of a part of the panel
        depth_mean = np.float32(depths(list(run.split.train), share_G / share_G.sum())[0])
        calibration["bin_encoder"] = {**calibration["bin_encoder"], "depth_mean": jax.device_put(
            multihost_utils.broadcast_one_to_all(depth_mean), places["bin_encoder"]["depth_mean"])}  # fmt: skip
        if weight := run.config.model.rare_gene_weight:
            weight_G = gene_weights(shares_G, weight, len(run.built.abstract()[1]["gene_weight"]))
            calibration["gene_weight"] = jax.device_put(multihost_utils.broadcast_one_to_all(weight_G),
                                                        places["gene_weight"])  # fmt: skip
        parameters = traversals.unflatten_mapping(parameters)
        expected = self._density_by(parameters, calibration, run, source)
        parameters["total_bias"] = jax.device_put(
            np.asarray(parameters["total_bias"]) - np.float32(np.log(expected)),
            run.built.shardings(run.mesh)[0]["total_bias"],
        )
        for line in self._told(run, match, missing, sorted(set(found) - set(wanted)), expected):
            say(line)
        return parameters, calibration

    def _refuse_other_model(self, run: Run) -> None:
        theirs, ours = self.provenance.config, run.config
        free = _FREE + (_OF_GENES if self.learns == "he" else ())
        fields = [("model", field.name) for field in dataclasses.fields(ours.model) if field.name not in free]
        differs = []
        for group, name in (*fields, *(("data", name) for name in _DATA)):
            before, now = (getattr(getattr(config, group), name) for config in (theirs, ours))
            if before != now:
                differs.append(f"{group}.{name} = {before!r}, now {now!r}")
        before, now = ((card or {}).get("hash") for card in (self.provenance.frozen_card, run.provenance.frozen_card))
        if before != now and not differs:
            differs.append(f"features of card {before} of its encoder, now {now}")
        if differs:
            raise InputError(f"{self.named}: is of another model, with {'; with '.join(differs)}; give the run what "
                             "the checkpoint has")  # fmt: skip
        if self.learns != "he" and theirs.data.one_shot and not ours.data.one_shot and ours.start.trained != "all":
            raise InputError(
                f"{self.named}: never read contents of bins (its data.groups are {theirs.data.groups}), and what reads "
                f"them would stay as it starts with start.trained={ours.start.trained}; set start.trained=all or "
                "data.groups=((1,1.0),)"
            )

    def _refuse_seen(self, run: Run) -> None:
        """What is held out must not have been learnt from, by the checkpoint or by those that it comes from."""
        split, seen_by = run.split, [self.origin, *self.provenance.starts]
        if split.by == "section":
            unit, seen = (
                "sections",
                {name for origin in seen_by for name in (*origin["train"], *origin.get("validation", ()))},
            )
            held_out = {section.id for section in split.held_out}
        else:
            unit, seen = "patients", {name for origin in seen_by for name in origin["seen_patients"]}
            held_out = {section.patient for section in split.held_out}
        if leaked := sorted(held_out & seen):
            raise InputError(
                f"{self.named}: was trained on or validated with {unit} that are held out now: {_some(leaked, 8)}; put "
                "them on the side of training (split.tsv, config.split), or start from a checkpoint that has not seen "
                "them"
            )

    def _of_genes(self, run: Run, found: dict, match: GeneMatch, shares_G: np.ndarray) -> dict[tuple, jax.Array]:
        """What has a row or a bias for each gene, by path: matched ones as they are, new ones without a claim.

        shares: of each gene of the run in the detections of training.
        """
        known_G = match.position_S >= 0
        at_M = match.position_S[known_G]
        theirs_M = _whole(found["gene_bias",], run.mesh)[at_M].astype(np.float64)
        of_known_M = np.exp(theirs_M - theirs_M.max())
        log_sum = np.log(of_known_M.sum()) + theirs_M.max()
        bias_G = np.log(shares_G) + log_sum - np.log(shares_G[known_G].sum())
        axes = dict(traversals.flatten_mapping(run.built.by_axes(lambda axes: axes)))
        shapes = dict(traversals.flatten_mapping(run.built.abstract()[0]))
        shardings = dict(traversals.flatten_mapping(run.built.shardings(run.mesh)[0]))
        result = {}
        for path in (path for path in shapes if path in found and {"genes", "gene_bias"} & set(axes[path])):
            theirs = _whole(found[path], run.mesh)
            if theirs.ndim == 1:
                start_Gx = np.full(shapes[path].shape, PADDING_BIAS, np.float32)
                start_Gx[: len(known_G)] = bias_G
            else:
                mean = (of_known_M @ theirs[at_M].astype(np.float64)) / of_known_M.sum()
                start_Gx = np.broadcast_to(mean.astype(np.float32), shapes[path].shape).copy()
            start_Gx[: len(known_G)][known_G] = theirs[at_M]
            # every process read the same rows; where their processors round differently, the first one's count
            result[path] = jax.device_put(multihost_utils.broadcast_one_to_all(start_Gx), shardings[path])
        return result

    def _density_by(self, parameters: Tree, calibration: Tree, run: Run, source: BatchSource) -> float:
        """Detections that the model expects in windows of training, over those that are there."""
        totals = make_totals(run.built, run.mesh, run.config.train.accumulate)
        expected = found = 0.0
        for t in range(len(source)):
            of_batch = totals(parameters, calibration, to_devices(source[t], run.mesh))
            expected, found = expected + float(of_batch[0]), found + float(of_batch[1])
        return expected / found if expected > 0 and found > 0 else 1.0

    def _told(self, run: Run, match: GeneMatch, missing: list, dropped: list, expected: float) -> list[str]:
        ours, theirs = run.provenance.panel, self.provenance.panel
        at_G = match.position_S
        kind, first = self.provenance.trained_on, f"starts from step {self.step} of {self.workdir}"
        lines = [f"{first}, trained on {kind} tissue: {_told_genes(ours, theirs, at_G)}"]
        if match.contradicted:
            lines.append(f"new by their Ensembl ids, though of a known symbol: {_some(match.contradicted, _NAMED)}")
        lines.append(f"the statistics of the stain are the checkpoint's; the density of detections times "
                     f"{1 / expected:.3g}, as training windows have it")  # fmt: skip
        if missing:
            lines.append(f"the checkpoint never read contents of bins: {_some(_names(missing), 8)} begin at random")
        if dropped:
            lines.append(f"contents of bins are not read here: {_some(_names(dropped), 8)} are left out")
        return lines


def _told_genes(ours: Panel, theirs: Panel, at_G: np.ndarray) -> str:
    by_id = [symbol for symbol, at in zip(ours.symbols, at_G, strict=True) if at >= 0 and theirs.symbols[at] != symbol]
    new = [symbol for symbol, at in zip(ours.symbols, at_G, strict=True) if at < 0]
    taken = set(at_G.tolist())
    left = [symbol for at, symbol in enumerate(theirs.symbols) if at not in taken]
    return "; ".join((
        f"{len(at_G) - len(new)} of {len(at_G)} genes matched" + (f" ({len(by_id)} by Ensembl id)" if by_id else ""),
        f"{len(new)} new" + (f" ({_some(new, _NAMED)})" if new else ""),
        f"{len(left)} of the checkpoint's dropped" + (f" ({_some(left, _NAMED)})" if left else ""),
    ))  # fmt: skip


def _some(names: list[str] | tuple[str, ...], most: int) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _names(paths: list[tuple]) -> list[str]:
    return [".".join(map(str, path)) for path in paths]


def _whole(array: jax.Array, mesh: Mesh) -> np.ndarray:
    """An array of the mesh, on every process."""
    return np.asarray(jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(array))


def _each_once(match: GeneMatch, panel: Panel) -> GeneMatch:
    """One gene of the checkpoint is one of the run's: where an id and a symbol both find it, the id does."""
    position_G = match.position_S.copy()
    by_id = sorted(range(len(panel)), key=lambda gene: not panel.ids[gene])  # stable
    taken: set[int] = set()
    for gene in by_id:
        if position_G[gene] in taken:
            position_G[gene] = -1
        elif position_G[gene] >= 0:
            taken.add(int(position_G[gene]))
    return match._replace(position_S=position_G)
