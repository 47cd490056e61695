"""What training minimises where a config asks for other than Poisson totals and detections that all weigh alike."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config

from tario_jax.bench.made_batch import made_batch
from tario_jax.config import InputError
from tario_jax.model.build import build
from tario_jax.parallel.mesh import make_mesh
from tario_jax.train.aot import pod_layout
from tario_jax.train.calibrate import calibrate

GENES = len(PANEL)


@pytest.mark.slow
def test_runs_are_compared_by_the_same_loss_and_trained_by_their_own(tiny_corpus):
    config = tiny_config(data={"groups": ((1, 1.0),)})
    own = dataclasses.replace(config.model, total_likelihood="negative_binomial", rare_gene_weight=0.5)
    batch = made_batch(config, pod_layout(config, GENES), GENES, 0)

    def started(model):
        built = build(model, GENES, config.data.patch_px, content=False)
        start = jax.device_get(built.initialise(0, make_mesh(config.mesh)))
        return built, *calibrate(built, *start, [batch], list(tiny_corpus.sections), GENES,
                                 rare_gene_weight=model.rare_gene_weight)  # fmt: skip

    def sums(built, parameters, calibration, *, as_trained):
        def nats(parameters):
            found = built.merge(parameters, calibration).loss(batch, as_trained=as_trained)
            return found.total_nats + found.gene_nats, found

        (_, found), gradient = jax.jit(jax.value_and_grad(nats, has_aux=True))(parameters)
        return found, gradient

    built, parameters, calibration = started(own)
    usual = started(config.model)
    alike = {name: value for name, value in parameters.items() if name != "total_log_size"}
    for as_trained in (False, True):
        expected, _ = sums(usual[0], alike, usual[2], as_trained=as_trained)
        found, gradient = sums(built, parameters, calibration, as_trained=as_trained)
        told = (found.total_nats / expected.total_nats - 1, found.gene_nats / expected.gene_nats - 1)
        assert found.detections == expected.detections
        if as_trained:
            assert abs(told[0]) > 0.01 and abs(told[1]) > 1e-4 and abs(gradient["total_log_size"]) > 1e-3
        else:
            np.testing.assert_allclose(told, 0, atol=1e-6)
            assert gradient["total_log_size"] == 0

    weight_G, share_G = np.asarray(calibration["gene_weight"])[:GENES], np.exp(parameters["gene_bias"][:GENES])
    assert (share_G * weight_G).sum() / share_G.sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(weight_G * share_G**0.5, (weight_G * share_G**0.5)[0], rtol=1e-4)


def test_a_weight_that_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"model.rare_gene_weight is 1.5; expected 0 to 1"):
        tiny_config(model={"rare_gene_weight": 1.5})
