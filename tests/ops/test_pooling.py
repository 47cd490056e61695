"""Means of the patches under bins against float64, on one device and where patches and bins lie on several."""

from pathlib import Path

import pytest
from pooling_case import case, worst_error


@pytest.mark.parametrize(("dtype", "bar"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_means_and_gradient(dtype, bar):
    assert worst_error(*case(), dtype) < bar


_PROGRAM = """
import sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from pooling_case import case, worst_error
from tario_jax.config import InputError, MeshConfig
from tario_jax.parallel.mesh import make_mesh

for sizes in ((1, 2, 4, 1), (2, 1, 2, 2), (1, 1, 8, 1)):
    with jax.set_mesh(make_mesh(MeshConfig(*sizes))):
        assert worst_error(*case()) < 1e-6
        assert worst_error(*case(), "bfloat16") < 1e-2
        for wrong in ({"patches": 49}, {"bins": 17}, {"rows": 5}):
            try:
                worst_error(*case(**wrong))
            except InputError as error:
                print(error)
"""


def test_patches_of_other_ranks_count_and_what_does_not_divide_is_refused(devices8):
    said = devices8(_PROGRAM, str(Path(__file__).parent)).splitlines()
    assert said == [
        *("--config.mesh: 49 patches of a row do not divide over context = 4; expected a multiple",
          "--config.mesh: 17 bins of a row do not divide over context = 4; expected a multiple",
          "--config.mesh: 5 rows do not divide over replica × fsdp = 2; expected a multiple"),
        *("--config.mesh: 49 patches of a row do not divide over context = 2; expected a multiple",
          "--config.mesh: 17 bins of a row do not divide over context = 2; expected a multiple",
          "--config.mesh: 5 rows do not divide over replica × fsdp = 2; expected a multiple"),
        *("--config.mesh: 49 patches of a row do not divide over context = 8; expected a multiple",
          "--config.mesh: 17 bins of a row do not divide over context = 8; expected a multiple"),
    ]  # fmt: skip
