"""What a checkpoint was trained from: it decides what may go on from it, and what it may be used on."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any

from tario_jax.config import Config, InputError
from tario_jax.config_files import from_dict, to_dict
from tario_jax.panel import Panel
from tario_jax.tokens.batch import Layout
from tario_jax.train.optimiser import decay_steps

FORMAT_VERSION = 3


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
    code: str = dataclasses.field(default_factory=lambda: code_version())
    started_from: dict[str, Any] | None = None  # the checkpoint that step 0 took, as `as_start` describes it
    validation: tuple[str, ...] = ()  # sections
    train_patients: tuple[str, ...] = ()  # empty: written by a tario that did not tell them from those of validation
    frozen_card: dict[str, Any] | None = None  # of data.frozen_encoder, with its hash
    sides_um: tuple[float, ...] = ()  # of all squares of training; empty: written by a tario that did not tell them

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "config": to_dict(self.config),
            "panel_hash": self.panel.hash,
            "panel": list(self.panel.symbols),
            "ensembl": list(self.panel.ensembl),
            "corpus_seal": self.corpus_seal,
            "trained_on": self.trained_on,
            "split_by": self.split_by,
            "train": list(self.train),
            "held_out": list(self.held_out),
            "layout": dataclasses.asdict(self.layout),
            "seen_patients": list(self.seen_patients),
            "bin_um": self.bin_um,
            "code": self.code,
            "started_from": self.started_from,
            "validation": list(self.validation),
            "train_patients": list(self.train_patients),
            "frozen_card": self.frozen_card,
            "sides_um": list(self.sides_um),
        }

    def as_start(self, run: str, step: int) -> dict[str, Any]:
        """What a run that starts from this checkpoint remembers of it: it may be gone when somebody asks."""
        return {
            "run": run, "step": step, "code": self.code, "corpus_seal": self.corpus_seal, "trained_on": self.trained_on,
            "panel_hash": self.panel.hash, "genes": len(self.panel), "bin_um": self.bin_um, "split_by": self.split_by,
            "train": list(self.train), "validation": list(self.validation), "seen_patients": list(self.seen_patients),
            "started_from": self.started_from, "learns": self.config.train.learns, "sides_um": list(self.sides_um),
        }  # fmt: skip

    def started(self, origin: dict[str, Any] | None) -> "Provenance":
        """The same of a run that started from `origin`: it has seen its patients too."""
        if origin is None:
            return self
        seen = sorted({*self.seen_patients, *origin["seen_patients"]})
        return dataclasses.replace(self, started_from=origin, seen_patients=tuple(seen))

    def resumed(self, found: "Provenance") -> "Provenance":
        """The same of a run that goes on from its checkpoint `found`: who validated before then was seen too."""
        seen = sorted({*self.seen_patients, *found.seen_patients})
        validation = dict.fromkeys((*self.validation, *found.validation))
        return dataclasses.replace(self, seen_patients=tuple(seen), validation=tuple(validation))

    @property
    def only_um(self) -> float | None:
        """The side of all squares that were learnt from, here and where this run started; None: they were several, or
        it is not known."""
        sides = {self.sides_um, *(tuple(start.get("sides_um", ())) for start in self.starts
                                  if start.get("learns") != "he")}  # fmt: skip
        return self.sides_um[0] if sides == {self.sides_um} and len(self.sides_um) == 1 else None

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The checkpoints that this one comes from, the nearest first; none where step 0 took its seed."""
        found, origin = [], self.started_from
        while origin is not None:
            found.append(origin)
            origin = origin["started_from"]
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str) -> "Provenance":
        if value.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{where}: format version {value.get('format_version')}; this tario reads {FORMAT_VERSION}"
            )
        panel = Panel(tuple(value["panel"]), tuple(value.get("ensembl", ())))
        if panel.hash != value["panel_hash"]:
            raise InputError(f"{where}: panel hash {value['panel_hash']} does not fit its own genes ({panel.hash})")
        config = from_dict(_without_unread(value["config"]))
        return cls(config, panel, value["corpus_seal"], value["trained_on"], value["split_by"],
                   tuple(value["train"]), tuple(value["held_out"]), Layout(**value["layout"]),
                   tuple(value["seen_patients"]), value["bin_um"], value["code"],
                   value.get("started_from"), tuple(value.get("validation", ())),
                   tuple(value.get("train_patients", ())), value.get("frozen_card"),
                   tuple(value.get("sides_um", ())))  # fmt: skip


@functools.cache
def code_version() -> str:
    """The release, and a hash of the source: a development version changes without a new number."""
    root = Path(__file__).resolve().parents[1]
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return f"{importlib.metadata.version('tario-jax')}+{found.hexdigest()[:12]}"


_NAMED = 6  # of the differences

# A resumed run may differ in these; everything else decides the numbers.
_FREE = ("mesh", "evaluate", "source", "name")
_FREE_FIELDS = (  # capacities, and how the same numbers are computed
    "data.count_capacity", "data.max_spots", "data.prefetch", "data.workers", "model.attention",
    "model.attention_block", "model.remat", "model.loss_chunk", "model.loss_gene_chunk",
)  # fmt: skip
_FREE_TRAIN = (
    "accumulate", "log_every", "validate_every", "validation_rows", "checkpoint_every", "keep_checkpoints",
    "keep_every", "grace_s", "skip_limit", "rollback_limit", "hang_minutes", "track",
)  # fmt: skip


def refuse_other_run(found: Provenance, now: Provenance, step: int, where: str) -> list[str]:
    """Raises `InputError` naming what differs between the checkpoint of `step` and the run that wants to continue it.

    Returns lines about what may differ and still is worth knowing.
    """
    differs = []
    if found.panel.hash != now.panel.hash:
        ours, theirs = set(now.panel.symbols), set(found.panel.symbols)
        only = sorted(theirs - ours)[:3]
        differs.append(
            f"panel {found.panel.hash} of {len(theirs)} genes, now {now.panel.hash} of {len(ours)} "
            f"({len(theirs & ours)} in common; only in the checkpoint: {', '.join(only) or 'none'})"
        )
    for name in ("corpus_seal", "trained_on", "split_by"):
        before, after = getattr(found, name), getattr(now, name)
        if before != after:
            differs.append(f"another {name} ({before}, now {after})")
    for name in ("train", "held_out"):
        before, after = getattr(found, name), getattr(now, name)
        if before != after:
            differs.append(f"another {name} ({len(before)} sections, now {len(after)}, "
                           f"{len(set(before) & set(after))} of them the same)")  # fmt: skip
    before, after = ((card or {}).get("hash") for card in (found.frozen_card, now.frozen_card))
    if before != after:
        differs.append(f"features of card {before} of a frozen encoder, now {after}")
    before, after = deciding_fields(found.config), deciding_fields(now.config)
    for fields in (before, after):  # of a split the sections were compared, however it names them
        for name in [name for name in fields if name.startswith("split.")]:
            del fields[name]
    if before["start.checkpoint"] and after["start.checkpoint"]:  # it is not read again, and is one place however named
        for fields in (before, after):
            fields["start.checkpoint"] = os.path.abspath(os.path.expandvars(fields["start.checkpoint"]))
    if rate_is_constant(found.config, step) and rate_is_constant(now.config, step):
        for name in ("train.steps", "optim.decay_share", "optim.final_share"):  # they decide what is still to come
            del before[name], after[name]
    differs += [f"{name} = {before.get(name)!r}, now {after.get(name)!r}"
                for name in sorted(before | after) if before.get(name) != after.get(name)]  # fmt: skip
    if len(differs) > _NAMED:
        differs[_NAMED:] = [f"{len(differs) - _NAMED} more fields"]
    if differs:
        raise InputError(f"{where}: was trained with {'; with '.join(differs)}; use another --workdir, or what it was "
                         "trained with")  # fmt: skip
    if found.code != now.code:
        return [f"{where}: was written by tario {found.code}, this is {now.code}: the numbers may differ in their bits"]
    return []


def rate_is_constant(config: Config, step: int) -> bool:
    """Whether a run is in the constant part of its schedule after `step` steps: it may then be made longer."""
    optim, steps = config.optim, config.train.steps
    return optim.schedule == "wsd" and optim.warmup_steps <= step <= steps - decay_steps(optim, steps)


def deciding_fields(config: Config) -> dict[str, Any]:
    """{dotted field: value} of what decides a run's numbers: a run that resumes may differ in everything else."""
    flat = {
        f"{group}.{name}": value
        for group, fields in to_dict(config).items()
        if group not in _FREE
        for name, value in fields.items()
    }
    for name in (*_FREE_FIELDS, *(f"train.{name}" for name in _FREE_TRAIN)):
        del flat[name]
    return flat


def _without_unread(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it was kept, without fields that nothing read and that an older tario took all the same."""
    source, train, optim = ({**config.get(group, {})} for group in ("source", "train", "optim"))
    if source.get("kind") == "virtual":
        source["path"] = ""
    if train.get("keep_every", 0) % max(train.get("checkpoint_every", 1), 1):
        train["keep_every"] = 0
    if train.get("learns") == "he":
        optim["z_loss"] = 0.0
    return config | {name: group for name, group in (("source", source), ("train", train), ("optim", optim)) if group}
