"""What bins hold against a dense float64 oracle, with its gradient, and its program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from content_case import assert_near, case, compiled, oracle
from count_case import sparse

from tario_jax.config import InputError
from tario_jax.ops.count_content import count_content, dense_content


# 22 bins: in even and uneven parts, one at a time, and fewer than would fit
@pytest.mark.parametrize("chunk", (0, 8, 5, 1, 100))
def test_content_and_gradient(chunk):
    given, dense = case()
    assert (np.asarray(given["counts"].bin_BxC) >= 0).sum(-1).max() > 512  # entries that are looked up together
    assert_near(compiled(given, chunk), oracle(given, dense), 1e-6)


def test_one_window_a_row_and_a_row_without_counts():
    given, dense = case()
    given["gene_mask_BxWxG"] = given["gene_mask_BxWxG"][:, :1]
    given["mask_of_bin_BxN"] = 0 * given["mask_of_bin_BxN"]
    dense *= given["gene_mask_BxWxG"]
    dense[1] = 0
    given["counts"] = sparse(dense)
    assert_near(compiled(given, 8), oracle(given, dense), 1e-6)


def test_dense_counts_hold_the_same():
    given, dense = case()
    given["gene_mask_BxWxG"] = given["gene_mask_BxWxG"][:, :1]
    given["mask_of_bin_BxN"] = 0 * given["mask_of_bin_BxN"]
    held, total = dense_content(given["table_Gxr"], given["frequency_G"], dense.astype(np.float32),
                                given["gene_mask_BxWxG"][:, 0], jnp.float32)  # fmt: skip
    dense *= given["gene_mask_BxWxG"]
    assert_near((held, total), oracle(given, dense)[:2], 1e-6)


def test_bfloat16_tables_are_near_and_sums_are_not_rounded():
    given, dense = case()
    given["table_Gxr"] = jnp.bfloat16(given["table_Gxr"])
    held, total, d_table = compiled(given, 8)
    assert held.dtype == d_table.dtype == jnp.bfloat16 and total.dtype == jnp.float32
    assert_near((held, total, d_table), oracle(given, dense), 1e-2)
    assert np.array_equal(total, dense.sum(-1))  # 40,000 detections of a gene among them


def test_a_gene_that_no_window_measured_receives_no_gradient():
    given, _ = case()
    never_G = ~given["gene_mask_BxWxG"].any((0, 1))
    assert never_G.any() and not np.asarray(compiled(given, 8)[2])[never_G].any()


def test_dense_counts_exist_of_a_chunk_only():
    given, dense = case()
    program = compiled.lower(given, 8).compile().as_text()
    rows, bins, genes = dense.shape
    assert f"f32[{rows},8,{genes}]" in program and f"[{rows},{bins},{genes}]" not in program


def test_a_negative_chunk_is_refused():
    given, _ = case()
    with pytest.raises(InputError, match=r"model.loss_chunk is -1; expected at least 1, or 0"):
        jax.eval_shape(functools.partial(count_content, dtype="float32", chunk=-1), *given.values())
