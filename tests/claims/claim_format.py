"""What a claim file says, and how its figure is held against its bar.

One TOML file a claim, `tests/claims/<group>/<name>.toml`; the fields are those of `Claim`. README.md beside this file
shows one.
"""

import ast
import dataclasses
import functools
import math
import operator
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROUPS = (
    "main-job", "virtual", "corpus", "attention", "pods", "training",
    "evaluation", "model", "serving", "launch", "slides", "patients",
)  # fmt: skip
NEEDS = ("gpu", "libtpu", "torch", "real-data", "chromium", "slurm", "crds")
WALL_SECONDS = "wall_seconds"  # the name, in a figure, of the seconds that the command took

_BARS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_OPERATIONS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., float]] = {"abs": abs, "min": min, "max": max}
PLACEHOLDER = re.compile(r"(?<!\$)\{(\w+)\}")  # ${NAME} is bash's
_PLACES = ("json", "workdir", "python", "tario")


class ClaimError(ValueError):
    """A claim file or a result is not what it should be. One line."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence, the command that measures it, and the bar that its figure must reach."""

    key: str  # group/name
    claim: str
    command: str | tuple[str, ...]  # a string goes to bash, a list does not; {python} {tario} {workdir} {json}
    figure: str  # arithmetic over the fields of the JSON result, such as "headline.a - headline.b"
    bar: str  # such as ">= 0.05"
    minutes: float  # what the command is expected to cost
    result: str = "{json}"  # the file that the command leaves; "" if the figure needs only wall_seconds
    table: str = ""  # docs/tables/<this>.txt keeps the text that the result holds as "table"
    unit: str = ""
    show: str = "{:.3g}"  # how the figure is printed, here and between the markers of the docs
    long: bool = False  # measured only with --long
    needs: tuple[str, ...] = ()

    def __post_init__(self):
        for needed in self.needs:
            _check(needed in NEEDS, self.key, f"needs {needed!r}", f"one of {', '.join(NEEDS)}")
        parse_bar(self.bar, self.key)
        _parse_figure(self.figure, self.key)
        try:
            shown = self.show.format(1.0)
        except (ValueError, IndexError, KeyError):
            shown = ""
        _check(shown not in ("", self.show), self.key, f"show = {self.show!r}", 'a format of one number, as "{:.2f}"')
        _check(re.fullmatch(r"[\w-]*", self.table) is not None, self.key, f"table = {self.table!r}", "a bare name")
        words = [self.command] if isinstance(self.command, str) else self.command
        for word in [*words, self.result]:
            for name in PLACEHOLDER.findall(word):
                _check(name in _PLACES, self.key, f"placeholder {{{name}}}", "{" + "}, {".join(_PLACES) + "}")

    @property
    def group(self) -> str:
        return self.key.split("/")[0]

    @functools.cached_property
    def definition(self) -> str:
        """What was measured: a stored figure of another definition says nothing about this claim."""
        words = self.command if isinstance(self.command, str) else " ".join(self.command)
        return f"{words} | {self.result} | {self.figure}"

    def shown(self, figure: float) -> str:
        return self.show.format(figure)


def _check(ok: bool, where: str, found: str, expected: str) -> None:
    if not ok:
        raise ClaimError(f"{where}: {found}; expected {expected}")


def load_claims(folder: Path) -> list[Claim]:
    """All claims under `folder`, ordered by group and name. Raises `ClaimError` for a file that is not a claim."""
    claims = []
    for path in sorted(folder.glob("*/*.toml")):
        group = path.parent.name
        _check(group in GROUPS, str(path), f"group {group!r}", f"one of {', '.join(GROUPS)}")
        try:
            fields = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ClaimError(f"{path}: {error}; expected TOML") from None
        claims.append(_claim(f"{group}/{path.stem}", fields))
    return sorted(claims, key=lambda claim: (GROUPS.index(claim.group), claim.key))


def _claim(key: str, fields: dict[str, Any]) -> Claim:
    kinds: dict[str, tuple[type, ...]] = {
        "claim": (str,), "command": (str, list), "figure": (str,), "bar": (str,), "minutes": (int, float),
        "result": (str,), "table": (str,), "unit": (str,), "show": (str,), "long": (bool,), "needs": (list,),
    }  # fmt: skip
    for name, value in fields.items():
        _check(name in kinds, key, f"field {name!r}", f"one of {', '.join(kinds)}")
        allowed = " or ".join(kind.__name__ for kind in kinds[name])
        _check(type(value) in kinds[name], key, f"{name} = {value!r}", allowed)
    required = [field.name for field in dataclasses.fields(Claim) if field.default is dataclasses.MISSING]
    missing = [name for name in required if name != "key" and name not in fields]
    _check(not missing, key, f"no {', '.join(missing)}", "claim, command, figure, bar and minutes")
    tuples = {name: tuple(map(str, value)) for name, value in fields.items() if isinstance(value, list)}
    return Claim(key=key, **{**fields, **tuples})


def parse_bar(bar: str, where: str = "bar") -> tuple[Callable[[float, float], bool], float]:
    """ "The order and the number of a bar: (operator.ge, 0.05) for ">= 0.05"."""
    match = re.fullmatch(r"(>=|<=|==|>|<)\s*(-?[\d.]+(?:e-?\d+)?)", bar.strip())
    _check(match is not None, where, f"bar {bar!r}", "an order and a number, such as '>= 0.05'")
    try:
        return _BARS[match[1]], float(match[2])
    except ValueError:
        raise ClaimError(f"{where}: bar {bar!r}; expected an order and a number, such as '>= 0.05'") from None


def is_met(figure: float, bar: str) -> bool:
    """Whether `figure` reaches `bar`; a figure that is not finite never does."""
    reaches, value = parse_bar(bar)
    return math.isfinite(figure) and reaches(figure, value)


def figure_of(expression: str, result: dict[str, Any], where: str = "figure") -> float:
    """The number that `expression` gives over the fields of `result`.

    Dotted names, constant subscripts, + − * / and abs, min, max: nothing else is evaluated. A flag counts as 0 or 1.
    Raises `ClaimError` where a field is missing or is not a number.
    """
    value = _evaluate(_parse_figure(expression, where), result, where)
    _check(isinstance(value, int | float), where, f"figure {expression} is {_brief(value)}", "a number")
    return float(value)


def _parse_figure(expression: str, where: str) -> ast.expr:
    try:
        tree = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise ClaimError(f"{where}: figure {expression!r}; expected arithmetic over fields of the result") from None
    for node in ast.walk(tree):
        _check(_allowed(node), where, f"figure {expression!r} holds {type(node).__name__}", "arithmetic over fields")
    return tree


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant | ast.UnaryOp)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float | str)
    grammar = ast.BinOp | ast.UnaryOp | ast.Name | ast.Attribute | ast.expr_context
    return isinstance(node, grammar) or type(node) in _OPERATIONS


def _evaluate(node: ast.expr, result: dict[str, Any], where: str) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return _field(result, node.id, ast.unparse(node), where)
        case ast.Attribute():
            return _field(_evaluate(node.value, result, where), node.attr, ast.unparse(node), where)
        case ast.Subscript():
            place = _evaluate(node.slice, result, where)
            return _field(_evaluate(node.value, result, where), place, ast.unparse(node), where)
        case ast.Call():
            operation, parts = _FUNCTIONS[node.func.id], node.args
        case ast.UnaryOp():
            operation, parts = _OPERATIONS[type(node.op)], [node.operand]
        case ast.BinOp():
            operation, parts = _OPERATIONS[type(node.op)], [node.left, node.right]
    values = [_evaluate(part, result, where) for part in parts]
    for part, value in zip(parts, values, strict=True):
        _check(isinstance(value, int | float), where, f"{ast.unparse(part)} is {_brief(value)}", "a number")
    try:
        return operation(*values)
    except (ZeroDivisionError, TypeError) as error:
        raise ClaimError(f"{where}: {ast.unparse(node)} cannot be computed: {error}") from None


def _field(container: Any, place: str | int, text: str, where: str) -> Any:
    try:
        return container[place]
    except (KeyError, IndexError, TypeError):
        held = ", ".join(map(str, container)) if isinstance(container, dict) else _brief(container)
        raise ClaimError(f"{where}: the result has no {text}; expected one of: {held}") from None


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
