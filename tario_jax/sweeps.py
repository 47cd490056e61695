"""Sweeps: many configs from one, each with a name that says how it differs.

A sweep's file has `get_sweep()`, which gives the configs by name, and `get_config(name)`, which gives one of them, so
that `tario train --config=configs/sweeps/patients.py:p93_seed0` is a run like any other.
"""

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tario_jax.config import Config, InputError
from tario_jax.config_files import matches


@dataclasses.dataclass(frozen=True)
class Variant:
    """What one run changes: dotted fields of the config, with their values."""

    name: str
    changes: dict[str, Any]


Variants = tuple[Variant, ...]


def vary(name: str, field: str, values: Iterable[Any]) -> Variants:
    """One field with each of the values; named `name` and the value: p93, p186 …"""
    return tuple(Variant(f"{name}{_written(value)}", {field: value}) for value in values)


def product(*axes: Variants) -> Variants:
    """Each of the one with each of the other."""
    return tuple(_joined(several) for several in itertools.product(*axes))


def chain(*axes: Variants) -> Variants:
    """The ones, then the others; what is there under the same name with the same changes comes once."""
    found: dict[str, Variant] = {}
    for variant in itertools.chain(*axes):
        if found.setdefault(variant.name, variant) != variant:
            raise InputError(f"sweep: two runs of the name {variant.name!r} differ; give one of them another name")
    return tuple(found.values())


def zipped(*axes: Variants) -> Variants:
    """The first of the one with the first of the other, and so on. Raises `InputError` where they are not as many."""
    if len({len(axis) for axis in axes}) > 1:
        sizes = ", ".join(str(len(axis)) for axis in axes)
        raise InputError(f"sweep: zipped axes have {sizes} values; expected equally many")
    return tuple(_joined(several) for several in zip(*axes, strict=True))


def subsample(variants: Variants, number: int, seed: int = 0) -> Variants:
    """So many of them, drawn without replacement, in their order."""
    if not 0 <= number <= len(variants):
        raise InputError(f"sweep: {number} of {len(variants)} runs are asked for; expected at most all of them")
    chosen = np.random.default_rng(seed).choice(len(variants), number, replace=False)
    return tuple(variants[k] for k in sorted(chosen))


def runs(base: Config, variants: Variants) -> dict[str, Config]:
    """The configs by name; each is called as the base and its variant."""
    named = chain(variants)
    return {variant.name: changed(base, variant.changes | {"name": f"{base.name}_{variant.name}"}) for variant in named}


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """With dotted fields set to these values. Raises `InputError` for a field that does not exist or a wrong type."""
    groups: dict[str, dict[str, Any]] = {}
    for dotted, value in changes.items():
        group, _, field = dotted.rpartition(".")
        groups.setdefault(group, {})[field] = value
    for group, fields in groups.items():
        node = getattr(config, group, None) if group else config
        hints = typing.get_type_hints(type(node)) if dataclasses.is_dataclass(node) else {}
        for field, value in fields.items():
            dotted = f"{group}.{field}" if group else field
            if field not in hints:
                raise InputError(f"sweep: {dotted}: no such field of a config")
            if not matches(value, hints[field]):
                raise InputError(f"sweep: {dotted} is {value!r}; expected {hints[field]}")
    top = groups.pop("", {})
    top |= {group: dataclasses.replace(getattr(config, group), **fields) for group, fields in groups.items()}
    return dataclasses.replace(config, **top)


def _joined(several: Sequence[Variant]) -> Variant:
    changes: dict[str, Any] = {}
    for variant in several:
        twice = sorted(set(changes) & set(variant.changes))
        if twice:
            raise InputError(f"sweep: {twice[0]} is changed by two axes at once; change it in one of them")
        changes |= variant.changes
    return Variant("_".join(variant.name for variant in several), changes)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
