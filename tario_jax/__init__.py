"""tario-jax: H&E in, the expression of every gene out.

import tario_jax
maps = tario_jax.load("runs/her2st").predict(image, um_per_px=0.5)
maps.gene("ERBB2")
"""

from importlib.metadata import version

__version__ = version("tario-jax")


def load(path, *, allow_virtual_model: bool = False):
    """A trained model from a workdir, as `tario_jax.predict.predictor.Predictor`.

    Its `predict(image, um_per_px=…)` gives gene maps of a uint8 RGB image. A model that was trained on virtual tissue
    predicts real tissue only with allow_virtual_model=True. Raises `tario_jax.config.InputError`.
    """
    from tario_jax.predict.predictor import load as load_predictor  # jax starts only when it is needed

    return load_predictor(path, allow_virtual_model=allow_virtual_model)
