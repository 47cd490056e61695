"""Where configs come from, and how they are stored.

A config file is Python: `get_config() -> Config`, or `get_config(arg)` for `--config=FILE.py:ARG`. Fields are
overridden from the command line as `--config.a.b=value`; a field that does not exist is answered with the one that
was meant.
"""

import ast
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import os
import re
import traceback
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from tario_jax import config as configs
from tario_jax.config import Config, InputError

Tree = TypeVar("Tree")
"""A dataclass of dataclasses, as Config."""


def expand(path: str) -> str:
    """A path of a config with its environment variables; raises `InputError` where one is not set."""
    expanded = os.path.expandvars(path)
    if "$" in expanded:
        raise InputError(f"{path}: the environment variable is not set; set it to the folder that is meant")
    return expanded


def load_config(spec: str, overrides: dict[str, str] | None = None) -> Config:
    """Reads `path.py[:arg]` and applies `{"a.b": "value"}`.

    Raises `InputError` where the file, a field or a value is not what it should be.
    """
    name, _, arg = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"--config={spec}: no such file{hint}")
    module_spec = importlib.util.spec_from_file_location(f"tario_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"{path}: has no get_config; expected a function that returns a Config")
        takes_arg = bool(inspect.signature(module.get_config).parameters)
        if arg and not takes_arg:
            raise InputError(f"--config={spec}: {path} takes no argument; leave out ':{arg}'")
        config = module.get_config(arg) if takes_arg else module.get_config()
    except InputError:
        raise
    except Exception as error:  # whatever a user's Python raises
        raise InputError(f"{path}{_line_in(path, error)}: {_explained(error)}") from None
    if not isinstance(config, Config):
        raise InputError(f"{path}: get_config returned {type(config).__name__}; expected tario_jax.config.Config")
    _refuse_types(path, config)
    return override(config, overrides or {})


def _refuse_types(path: Path, node: Any, prefix: str = "") -> None:
    """Raises `InputError` where a field of a config file holds another type than it is of: Python takes any."""
    for name, hint in typing.get_type_hints(type(node)).items():
        value = getattr(node, name)
        if dataclasses.is_dataclass(hint):
            _refuse_types(path, value, f"{prefix}{name}.")
        elif not matches(value, hint):
            raise InputError(f"{path}: {prefix}{name} is {value!r}; expected {_describe(hint)}")


def chosen(name: str, choices: dict[str, Any]) -> Any:
    """What a config file offers under its argument: `--config=FILE.py:name`. Raises `InputError` where it does not."""
    if name not in choices:
        near = difflib.get_close_matches(name, filter(None, choices), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"--config=…:{name}: expected one of {', '.join(filter(None, choices))}{hint}")
    return choices[name]


def _line_in(path: Path, error: Exception) -> str:
    """The line of the config file that raised `error`, as ", line N"."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _explained(error: Exception) -> str:
    """One line; a field that does not exist is answered with the one that was meant."""
    text = " ".join(str(error).split()) or "no reason given"
    wrong = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    kind = getattr(configs, wrong[1], None) if wrong else None
    if dataclasses.is_dataclass(kind):
        near = difflib.get_close_matches(wrong[2], [field.name for field in dataclasses.fields(kind)], 1, cutoff=0.0)
        return f"{wrong[1]} has no field {wrong[2]!r}; did you mean {near[0]!r}?"
    return f"{type(error).__name__}: {text}"


def override(config: Tree, assignments: dict[str, str], prefix: str = "--config.") -> Tree:
    """`config` with each dotted field set to the value that its text stands for; checked when all are set.

    prefix: what stands before a field where a mistake in it is told; other trees of dataclasses have another.
    """
    named = {tuple(dotted.split(".")): (text, f"{prefix}{dotted}") for dotted, text in assignments.items()}
    return _set(config, named, functools.partial(_nearest, config, prefix))


def _set(node: Any, assignments: dict[tuple[str, ...], tuple[str, str]], meant: Callable[[str, str, Any], str]) -> Any:
    """`node` with its fields set; keys of `assignments` are the names from here on, values the text and the whole
    name. meant: see `_nearest`."""
    hints = typing.get_type_hints(type(node))
    changed: dict[str, Any] = {}
    within: dict[str, dict] = {}
    for (name, *rest), (text, dotted) in assignments.items():
        if name not in hints:
            raise InputError(f"{dotted}: no such field; did you mean {meant(dotted, name, node)}?")
        is_group = dataclasses.is_dataclass(hints[name])
        if is_group != bool(rest):
            kind = "a group of fields" if is_group else "a field, not a group"
            raise InputError(f"{dotted}: {name!r} is {kind}")
        if is_group:
            within.setdefault(name, {})[tuple(rest)] = (text, dotted)
        else:
            changed[name] = _parse(text, hints[name], dotted)
    changed |= {name: _set(getattr(node, name), inner, meant) for name, inner in within.items()}
    return dataclasses.replace(node, **changed) if changed else node


def _nearest(root: Any, prefix: str, dotted: str, wrong: str, node: Any) -> str:
    """The dotted field of all of `root` that `dotted` most likely meant."""
    here = [field.name for field in dataclasses.fields(node)]
    near = difflib.get_close_matches(wrong, here, 1, cutoff=0.5)
    before, _, after = dotted.removeprefix(prefix).partition(wrong)
    if near:
        return f"{prefix}{before}{near[0]}{after}"
    everywhere = {f"{group.name}.{field.name}" for group in dataclasses.fields(root)
                  if dataclasses.is_dataclass(group.type) for field in dataclasses.fields(group.type)}  # fmt: skip
    leaf = {path.split(".")[-1]: path for path in everywhere}
    near = difflib.get_close_matches(dotted.split(".")[-1], leaf, 1, cutoff=0.0)
    return f"{prefix}{leaf[near[0]]}"


def _parse(text: str, hint: Any, dotted: str) -> Any:
    try:
        value = text if hint is str else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text  # a bare word: right for a choice, refused below for anything else
    if hint is float and (type(value) is int or text in ("inf", "-inf", "nan")):  # which of them, its field says
        value = float(value)
    if not matches(value, hint):
        raise InputError(f"{dotted}={text}: expected {_describe(hint)}")
    return value


def matches(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type that `hint` names (scalars, Literal, unions, tuples)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(matches(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(matches, value, args))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f'a tuple, as "{_example(hint)}"'
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)


def _example(hint: Any) -> str:
    """A value of this type, as it is written on a command line."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        # of one item or many, which is written with a comma behind it
        return f"({_example(args[0])},)" if args[-1] is Ellipsis else f"({', '.join(map(_example, args))})"
    if typing.get_origin(hint) is Literal:
        return repr(args[0])
    return {str: "'a'", int: "1", float: "0.5"}.get(hint, str(hint))


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: type = Config) -> Any:
    """The inverse of `to_dict`. Raises `InputError` for a field that this version does not know."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"stored config: {kind.__name__} has no field {unknown[0]!r}; it is of another version")
    return kind(**{
        name: from_dict(value, hints[name]) if dataclasses.is_dataclass(hints[name]) else _tuples(value)
        for name, value in values.items()
    })  # fmt: skip


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
