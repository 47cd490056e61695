"""tario bench attention: what it counts is what the rule says, and its figures stand beside each other."""

import json
import re

import numpy as np
import pytest

from tario_jax.bench.attention import Shape, bench_attention
from tario_jax.bench.sequences import SEQUENCES, allowed_pairs, make_sequence, ring_balance
from tario_jax.config import InputError
from tario_jax.ops.visibility import visible

RANKS, BLOCK = 4, 64


def mask_of(sequence):
    return np.asarray(visible(*sequence))[0]


@pytest.mark.parametrize("kind", SEQUENCES)
def test_allowed_pairs_are_those_of_the_rule_however_tokens_are_dealt(kind):
    dealt, natural = make_sequence(kind, 1280, RANKS, BLOCK), make_sequence(kind, 1280, 1, BLOCK)
    assert allowed_pairs(dealt) == mask_of(dealt).sum()
    if not kind.startswith("tario"):  # its tiles are rounded to the ranks, and its order of writing is drawn
        assert allowed_pairs(dealt) == allowed_pairs(natural)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_balance_counts_the_blocks_that_hold_a_visible_pair(kind):
    sequence = make_sequence(kind, 1280, RANKS, BLOCK)
    mask = mask_of(sequence)
    ranks_q, ranks_k = np.split(np.arange(mask.shape[0]), RANKS), np.split(np.arange(mask.shape[1]), RANKS)
    work = np.zeros((RANKS, RANKS))
    for hop in range(RANKS):
        for rank in range(RANKS):
            part = mask[np.ix_(ranks_q[rank], ranks_k[(rank - hop) % RANKS])]
            part = np.pad(part, [(0, -part.shape[0] % BLOCK), (0, -part.shape[1] % BLOCK)])
            of_blocks = part.reshape(part.shape[0] // BLOCK, BLOCK, part.shape[1] // BLOCK, BLOCK).any((1, 3))
            work[hop, rank] = of_blocks.sum() * BLOCK**2
    balance = ring_balance(sequence, RANKS, BLOCK)
    assert 1 <= balance.computed <= 1.5
    # ranges of segments and steps may call an empty pair of blocks partial, never the other way round
    assert work.sum() / mask.sum() <= balance.computed <= 1.1 * work.sum() / mask.sum()
    path = work.max(1).sum() / (mask.sum() / RANKS)
    assert path <= balance.critical_path <= 1.1 * path


def test_a_window_of_tissue_has_pure_blocks_and_queries_that_look_one_step_back():
    queries, keys = make_sequence("tario", 2560, RANKS, BLOCK)
    seen = keys.write_step_BxS.reshape(RANKS, -1)
    bins = seen.shape[1] // 5
    assert (seen[:, : 4 * bins] == 0).all() and (seen[:, 4 * bins :] > 0).all()  # four fifths H&E, then contents
    read = queries.read_step_BxS.reshape(RANKS, -1)
    np.testing.assert_array_equal(read[:, : 5 * bins], seen)
    np.testing.assert_array_equal(read[:, 5 * bins :], seen[:, 4 * bins :] - 1)
    np.testing.assert_array_equal(np.sort(seen[:, 4 * bins :].ravel()), np.arange(1, RANKS * bins + 1))


def test_a_local_layer_costs_in_proportion_to_the_tissue():
    def computed(tokens):
        balance = ring_balance(make_sequence("tario_local", tokens, RANKS, BLOCK), RANKS, BLOCK)
        return balance.computed * balance.allowed

    assert computed(5120) == 2 * computed(2560) == 4 * computed(1280)


def test_a_mask_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="--mask=banded: expected one of causal, full, packed, tario, tario_local"):
        make_sequence("banded", 1024, 1, BLOCK)


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [
        (("ring",), "--leave-out=ring: expected one of blockwise | pallas | dense XLA | jax.nn XLA"),
        (("blockwise", "pallas", "dense XLA", "jax.nn XLA"), "nothing is left to run"),
    ],
)
def test_ways_that_cannot_be_left_out_are_refused(leave_out, message):
    with pytest.raises(InputError, match=re.escape(message)):
        bench_attention(Shape(64, 2, 2, 16, "float32", 32), "causal", 1, 1, leave_out)


@pytest.mark.slow
def test_through_the_command_line(cli_tario, tmp_path):
    small = ("--tokens=256", "--heads=2", "--width=16", "--block=32")
    # so short that each is called hundreds of times in a measurement
    done = cli_tario("bench", "attention", "--devices=2", "--rounds=2", *small[1:], "--tokens=64",
                     f"--json={tmp_path / 'time.json'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "time.json").read_text())
    assert list(told["ways"]) == ["ring", "all_gather", "dense XLA", "jax.nn XLA"]
    assert told["allowed_pairs"] == 64 * 65 // 2
    ring = told["ways"]["ring"]
    rate = 14 * 16 * 2 * told["allowed_pairs"] / ring["seconds"]
    assert ring["share_of_matmul"] == pytest.approx(1e-12 * rate / told["matmul_tflops"], rel=2e-3)
    assert told["beside"]["ring"]["both"] == 1 and "all-gather over context" in told["chosen"]
    assert "jax.nn XLA" in done.stdout

    # tissue is rounded to whole tiles for every device, and its peers get as many; names are given one by one
    left_out = ("--leave-out=all_gather", "--leave-out=dense XLA")
    done = cli_tario("bench", "attention", "--devices=2", "--mask=tario", "--rounds=1", *small[1:], "--tokens=1000",
                     *left_out, f"--json={tmp_path / 'tissue.json'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "tissue.json").read_text())["ways"]) == ["ring", "jax.nn XLA"]

    done = cli_tario("bench", "attention", "--memory=1,4", *small, f"--json={tmp_path / 'memory.json'}")
    assert done.returncode == 0, done.stderr
    rings = json.loads((tmp_path / "memory.json").read_text())["ring_of"]
    assert rings["4"]["temporary_mib"] > rings["1"]["temporary_mib"] > 0
    assert rings["4"]["arguments_mib"] == pytest.approx(rings["1"]["arguments_mib"], rel=1e-3)

    done = cli_tario("bench", "attention", "--balance", "--mask=packed", "--devices=4", "--tokens=1024", "--block=32")
    assert done.returncode == 0 and "critical path" in done.stdout
    for words, said in ((("--balance", "--memory=1,4"), "--memory: --balance does not read it"),
                        (("--memory=1,4", "--rounds=2"), "--rounds: --memory does not read it")):  # fmt: skip
        done = cli_tario("bench", "attention", *words)
        assert done.returncode == 2 and said in done.stderr
    done = cli_tario("bench", "attention", "--mask=banded", *small)
    assert done.returncode == 2 and "--mask=banded: expected one of" in done.stderr
