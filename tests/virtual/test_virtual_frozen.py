"""The simulator does not change unnoticed."""

from tario_jax.virtual import version


def test_the_simulator_is_what_its_version_froze():
    assert version.checksum() == version.FROZEN, (
        "what virtual patients are made of has changed: raise VERSION in tario_jax/virtual/version.py, write this "
        "checksum into FROZEN, and measure every figure of virtual tissue again (make claims LONG=1)"
    )
