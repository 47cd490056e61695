"""What an encoder is: the card that stands beside its features, and says which of them may be mixed."""

import dataclasses
import hashlib
import json
import math
import re
from typing import Any

import numpy as np

from tario_jax.config import InputError

LIBRARIES = ("tario", "timm", "transformers", "onnx")
POOLINGS = ("vector", "class", "class+mean")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME_EXPECTED = "letters, digits, '-', '_' and '.', a letter or digit first: it becomes a folder of the corpus"


@dataclasses.dataclass(frozen=True)
class EncoderCard:
    """A frozen encoder as it is read. Two sets of features may be mixed iff their cards have one `hash`."""

    name: str  # of the folder features/<name>, and what data.frozen_encoder names
    about: str  # the model, in a line
    source: str  # where its weights come from
    licence: str  # as its authors state it; the user checks
    um_per_px: float  # at which the H&E is read
    input_px: int  # side of the square that it sees
    mean: tuple[float, float, float]  # subtracted from each channel, in units of `full_scale`
    sd: tuple[float, float, float]  # then divided by it
    full_scale: float  # value of white before `mean` is subtracted: 1 or 255
    features: int  # length of a vector
    pitch_um: float  # between neighbouring vectors of the grid
    library: str  # that runs it: tario (efficientnet.py), timm, transformers or onnx
    model: str = ""  # as the library calls it; onnx: the weights' file is the model
    # vector: the output is [N, F]; else it is [N, tokens, F]: the class token, or that beside the mean of the patches
    pooling: str = "vector"
    other_tokens: int = 0  # between the class token and those of patches (registers)
    weights_sha256: str = ""  # of the weights' file or arrays; empty until they are loaded

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise InputError(f"encoder {self.name!r}: expected a name of {NAME_EXPECTED}")
        for name in ("um_per_px", "input_px", "features", "pitch_um"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"encoder {self.name}: {name} is {value}; expected a number above 0")
        for name, known in (("library", LIBRARIES), ("pooling", POOLINGS)):
            if getattr(self, name) not in known:
                raise InputError(f"encoder {self.name}: {name} is {getattr(self, name)!r}; expected one of "
                                 f"{', '.join(known)}")  # fmt: skip
        if self.full_scale not in (1.0, 255.0):
            raise InputError(f"encoder {self.name}: full_scale is {self.full_scale}; expected 1 or 255")
        if len(self.mean) != 3 or len(self.sd) != 3 or not all(sd > 0 for sd in self.sd):
            raise InputError(f"encoder {self.name}: mean {self.mean} and sd {self.sd}; expected three numbers each, "
                             "and sd above 0")  # fmt: skip

    @property
    def patch_um(self) -> float:
        """Side of the square of tissue that one vector describes."""
        return self.um_per_px * self.input_px

    def normalised(self, pixels_NxYxXx3: np.ndarray) -> np.ndarray:
        """What the network takes, float32 of the same shape, of uint8 pixels."""
        scaled = pixels_NxYxXx3.astype(np.float32) * np.float32(self.full_scale / 255.0)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.sd, np.float32)

    def pooled(self, output: np.ndarray) -> np.ndarray:
        """Vectors [N, features] of what the network gives. Raises `InputError` where that is of another shape."""
        tokens = self.pooling != "vector"
        if output.ndim != 2 + tokens or (tokens and output.shape[1] < 2 + self.other_tokens):
            raise InputError(f"encoder {self.name}: its output is {list(output.shape)}; its card's pooling "
                             f"{self.pooling!r} expects {'[N, tokens, F]' if tokens else '[N, F]'}")  # fmt: skip
        if self.pooling == "class":
            output = output[:, 0]
        elif self.pooling == "class+mean":
            output = np.concatenate([output[:, 0], output[:, 1 + self.other_tokens :].mean(1)], -1)
        if output.shape[1] != self.features:
            raise InputError(f"encoder {self.name}: gives vectors of length {output.shape[1]}, its card says "
                             f"{self.features}; correct the card's features")  # fmt: skip
        return output

    @property
    def hash(self) -> str:
        """Of all that decides the numbers: weights, scale, field, pitch and normalisation; not of the words."""
        words = ("about", "source", "licence")
        decides = {name: value for name, value in self.to_json().items() if name not in words}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"mean": list(self.mean), "sd": list(self.sd)}

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str) -> "EncoderCard":
        """Raises `InputError` where a field is missing, unknown or of another type."""
        names = {field.name for field in dataclasses.fields(cls)}
        optional = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
        missing = names - set(value) - optional
        if missing or set(value) - names:
            odd = ", ".join(sorted(missing or set(value) - names))
            raise InputError(f"{where}: {'says nothing of' if missing else 'has unknown'} {odd}; expected the fields "
                             f"{', '.join(sorted(names))}")  # fmt: skip
        try:
            numbers = {name: float(value[name]) for name in ("um_per_px", "full_scale", "pitch_um")}
            whole = {name: int(value.get(name, 0)) for name in ("input_px", "features", "other_tokens")}
            triples = {name: tuple(float(part) for part in value[name]) for name in ("mean", "sd")}
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: {error}; expected numbers, and three of them for mean and sd") from None
        return cls(**{**{name: str(told) for name, told in value.items()}, **numbers, **whole, **triples})
