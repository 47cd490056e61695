"""EfficientNet-Lite0 (Tan and Le 2019; the Lite variant has no squeeze and excitation, and ReLU6 throughout).

Inference only: batch norms (epsilon 1e-3) are folded into the convolutions before them. Pixels come as
(x − 127) / 128, as in the network's first release; padding is TensorFlow's "same", which is uneven at stride 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tario_jax.config import InputError

_EPSILON = 1e-3
# of each stage: blocks, side of the kernel, stride of the first block, growth inside of a block, channels
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
HEAD, CLASSES = 1280, 1000
# Stages whose means are the features: of the middle of the network. Chosen on real spots (docs/encoders.md): texture is
# there, and the last stage and the head, which know cats from cups, add noise.
POOLED = (1, 2, 3, 4, 5)
FEATURES = sum(STAGES[stage][-1] for stage in POOLED)


class Convolution(NamedTuple):
    """A convolution with what followed it folded in."""

    weight: np.ndarray  # float32 [Y, X, in, out]; depthwise [Y, X, channels]
    bias: np.ndarray  # float32 [out]


class Block(NamedTuple):
    expand: Convolution | None
    depthwise: Convolution
    project: Convolution
    stride: int


class Weights(NamedTuple):
    stem: Convolution
    stages: tuple[tuple[Block, ...], ...]
    head: Convolution
    classes: Convolution  # weight [HEAD, CLASSES]


def fold(state: dict[str, np.ndarray], where: str) -> Weights:
    """The tensors of a checkpoint, [out, in, Y, X] as PyTorch has them, as folded convolutions.

    Raises `InputError` where they are not those of EfficientNet-Lite0.
    """
    left = {name for name in state if not name.endswith("num_batches_tracked")}

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        left.discard(name)
        if name not in state or state[name].shape != shape:
            found = state[name].shape if name in state else "nothing"
            raise InputError(f"{where}: {name} is {found}; expected {shape}, as EfficientNet-Lite0 has it")
        return state[name].astype(np.float64)

    def folded(name: str, norm: str, out: int, inside: int, side: int) -> Convolution:
        weight_OxIxYxX = take(f"{name}.weight", (out, inside, side, side))
        gain, bias, mean, variance = (take(f"{norm}.{part}", (out,))
                                      for part in ("weight", "bias", "running_mean", "running_var"))  # fmt: skip
        gain = gain / np.sqrt(variance + _EPSILON)
        weight_YxXxIxO = (weight_OxIxYxX * gain[:, None, None, None]).transpose(2, 3, 1, 0)
        return Convolution(weight_YxXxIxO.astype(np.float32), (bias - mean * gain).astype(np.float32))

    stem = folded("_conv_stem", "_bn0", 32, 3, 3)
    stages, inside, number = [], 32, 0
    for blocks, side, stride, growth, out in STAGES:
        stage = []
        for block in range(blocks):
            at, wide = f"_blocks.{number}", inside * growth
            expand = folded(f"{at}._expand_conv", f"{at}._bn0", wide, inside, 1) if growth > 1 else None
            depthwise = folded(f"{at}._depthwise_conv", f"{at}._bn1", wide, 1, side)
            depthwise = depthwise._replace(weight=depthwise.weight[:, :, 0])
            project = folded(f"{at}._project_conv", f"{at}._bn2", out, wide, 1)
            stage.append(Block(expand, depthwise, project, stride if block == 0 else 1))
            inside, number = out, number + 1
        stages.append(tuple(stage))
    head = folded("_conv_head", "_bn1", HEAD, inside, 1)
    classes = Convolution(take("_fc.weight", (CLASSES, HEAD)).T.astype(np.float32),
                          take("_fc.bias", (CLASSES,)).astype(np.float32))  # fmt: skip
    if left:
        raise InputError(f"{where}: holds {sorted(left)[0]}, which EfficientNet-Lite0 has not")
    return Weights(stem, tuple(stages), head, classes)


def maps(weights: Weights, x_NxYxXx3: jax.Array) -> list[jax.Array]:
    """Outputs of the stages and of the head, float32 [N, Y, X, channels] each, of normalised pixels."""
    x, found = _relu6(_convolve(x_NxYxXx3, weights.stem, 2)), []
    for stage in weights.stages:
        for block in stage:
            inside = x
            if block.expand is not None:
                x = _relu6(_convolve(x, block.expand, 1))
            x = _relu6(_depthwise(x, block.depthwise, block.stride))
            x = _convolve(x, block.project, 1)
            if x.shape == inside.shape:
                x = x + inside
        found.append(x)
    return [*found, _relu6(_convolve(x, weights.head, 1))]


def features(weights: Weights, x_NxYxXx3: jax.Array) -> jax.Array:
    """Means over the patch of the stages `POOLED`, side by side: float32 [N, FEATURES]."""
    found = maps(weights, x_NxYxXx3)
    return jnp.concatenate([found[stage].mean((1, 2)) for stage in POOLED], -1)


def logits(weights: Weights, x_NxYxXx3: jax.Array) -> jax.Array:
    """Of the 1,000 classes of ImageNet, float32 [N, CLASSES]: not used but to see that the network is the right one."""
    return maps(weights, x_NxYxXx3)[-1].mean((1, 2)) @ weights.classes.weight + weights.classes.bias


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0.0, 6.0)


def _convolve(x: jax.Array, convolution: Convolution, stride: int) -> jax.Array:
    if convolution.weight.shape[:2] == (1, 1):
        return jnp.einsum("nyxi,io->nyxo", x, convolution.weight[0, 0], precision="highest") + convolution.bias
    x = jax.lax.conv_general_dilated(x, convolution.weight, (stride, stride), "SAME", precision="highest",
                                     dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
    return x + convolution.bias


def _depthwise(x: jax.Array, convolution: Convolution, stride: int) -> jax.Array:
    """Shifted products, summed: on a CPU eight times as fast as XLA's convolution in as many groups as channels."""
    weight_YxXxC, bias_C = convolution
    side = len(weight_YxXxC)
    outside = [-(-size // stride) for size in x.shape[1:3]]
    beyond = [max((out - 1) * stride + side - size, 0) for out, size in zip(outside, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in beyond), (0, 0)))
    rows, columns = ((out - 1) * stride + 1 for out in outside)
    return bias_C + sum(
        x[:, i : i + rows : stride, j : j + columns : stride] * weight_YxXxC[i, j]
        for i in range(side) for j in range(side)
    )  # fmt: skip
