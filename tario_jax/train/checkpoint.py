"""Checkpoints: Orbax, with what they were trained from beside the numbers."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tario_jax.config import Config, InputError, from_dict, to_dict
from tario_jax.panel import Panel
from tario_jax.tokens.batch import Layout
from tario_jax.train.state import TrainState

FORMAT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a checkpoint was trained from. It decides what the checkpoint may be used on."""

    config: Config
    panel: Panel
    corpus_seal: str
    trained_on: str  # kind of the corpus: virtual or real
    split_by: str
    train: tuple[str, ...]  # sections
    held_out: tuple[str, ...]
    layout: Layout
    seen_patients: tuple[str, ...]  # of training and validation
    bin_um: float  # side of the squares that were trained on; for spots, of the square of a spot's area

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "config": to_dict(self.config),
            "panel_hash": self.panel.hash,
            "panel": list(self.panel.symbols),
            "corpus_seal": self.corpus_seal,
            "trained_on": self.trained_on,
            "split_by": self.split_by,
            "train": list(self.train),
            "held_out": list(self.held_out),
            "layout": dataclasses.asdict(self.layout),
            "seen_patients": list(self.seen_patients),
            "bin_um": self.bin_um,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str) -> "Provenance":
        if value.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{where}: format version {value.get('format_version')}; this tario reads {FORMAT_VERSION}"
            )
        panel = Panel(tuple(value["panel"]))
        if panel.hash != value["panel_hash"]:
            raise InputError(f"{where}: panel hash {value['panel_hash']} does not fit its own genes ({panel.hash})")
        return cls(from_dict(value["config"]), panel, value["corpus_seal"], value["trained_on"], value["split_by"],
                   tuple(value["train"]), tuple(value["held_out"]), Layout(**value["layout"]),
                   tuple(value["seen_patients"]), value["bin_um"])  # fmt: skip


class Checkpoints:
    """The checkpoints of a workdir. A step counts only when it is whole (Orbax commits it by a rename)."""

    def __init__(self, workdir: Path, *, keep: int = 2):
        self.folder = (workdir / "checkpoints").resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, provenance: Provenance) -> None:
        step = int(jax.device_get(state.step))
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), provenance=ocp.args.JsonSave(provenance.to_json())
        )
        self._manager.save(step, args=items, force=True)

    def provenance(self, step: int) -> Provenance:
        found = self._manager.restore(step, args=ocp.args.Composite(provenance=ocp.args.JsonRestore()))
        return Provenance.from_json(found["provenance"], f"{self.folder}/{step}")

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of `step`, on the mesh that `abstract`'s shardings name."""
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract._asdict()))
        return TrainState(**self._manager.restore(step, args=items)["state"])


# A resumed run may differ in these; everything else decides the numbers.
_FREE = ("mesh", "evaluate", "source", "name")
_FREE_FIELDS = (  # capacities, and how the same numbers are computed
    "data.count_capacity", "data.max_spots", "data.prefetch", "model.attention", "model.attention_block", "model.remat",
    "model.loss_chunk", "model.loss_gene_chunk",
)  # fmt: skip
_FREE_TRAIN = ("accumulate", "log_every", "validate_every", "validation_rows", "checkpoint_every", "keep_checkpoints")


def refuse_other_run(found: Provenance, now: Provenance, where: str) -> None:
    """Raises `InputError` naming what differs between a checkpoint and the run that wants to continue it."""
    if found.panel.hash != now.panel.hash:
        ours, theirs = set(now.panel.symbols), set(found.panel.symbols)
        only = sorted(theirs - ours)[:3]
        raise InputError(
            f"{where}: was trained on panel {found.panel.hash} of {len(theirs)} genes, the corpus has "
            f"{now.panel.hash} of {len(ours)} ({len(theirs & ours)} in common; only in the checkpoint: "
            f"{', '.join(only) or 'none'}); "
            "use another --workdir"
        )
    for name in ("corpus_seal", "trained_on", "split_by", "train", "held_out"):
        if getattr(found, name) != getattr(now, name):
            raise InputError(f"{where}: was trained with another {name}; use another --workdir")
    before, after = _deciding(found.config), _deciding(now.config)
    for name in sorted(before | after):
        if before.get(name) != after.get(name):
            raise InputError(
                f"{where}: was trained with {name} = {before.get(name)!r}, now {after.get(name)!r}; "
                "use another --workdir or the same value"
            )


def _deciding(config: Config) -> dict[str, Any]:
    flat = {
        f"{group}.{name}": value
        for group, fields in to_dict(config).items()
        if group not in _FREE
        for name, value in fields.items()
    }
    for name in (*_FREE_FIELDS, *(f"train.{name}" for name in _FREE_TRAIN)):
        del flat[name]
    return flat


def find_checkpoint(path: Path | str) -> tuple[Path, int]:
    """(workdir, step) of the newest whole checkpoint of a workdir; raises `InputError` where there is none."""
    path = Path(path)
    if not path.is_dir():
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 1)
            if path.parent.is_dir()
            else []
        )
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"{path}: no such workdir{hint}")
    if not (path / "checkpoints").is_dir():
        raise InputError(f"{path}: holds no checkpoints; expected the workdir of 'tario train' or 'tario run'")
    with Checkpoints(path) as checkpoints:
        step = checkpoints.latest_step
    if step is None:
        raise InputError(f"{path}/checkpoints: holds no whole checkpoint; train until the first one is saved")
    return path, step
