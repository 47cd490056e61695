"""The same model and training step in PyTorch, on the same tokens and from the same weights: what ours is held against.

It is set up to be fast. Tokens lie by modality over all rows, so that every part is a view. H&E sees H&E alone: dense
attention without a mask, whatever the order of writing; contents and queries take a boolean mask, or none where all
bins are of one group. Local layers are batches of small dense attentions, one a tile. The 3 × 3 convolution is one,
AdamW is fused, and on a GPU the step's loss is compiled.

Axes: B rows, T tiles, P patches and N bins of a tile, A all tokens (H&E, then contents, then queries), S those that are
seen, d width, G padded genes, X sequences that attend within themselves.
"""

import functools
import math
import os
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tario_jax.config import Config, InputError
from tario_jax.model.build import Tree, build
from tario_jax.model.decoder import LONGEST_UM, SHORTEST_UM
from tario_jax.model.he_encoder import Pyramid
from tario_jax.model.stain import LAGS_PX, THRESHOLDS, STAINS_3x3
from tario_jax.model.width import Growth
from tario_jax.tokens.batch import Batch

_LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 30}
_MASKED = -1e30


class Tokens(NamedTuple):
    """A batch on torch's device."""

    he: torch.Tensor  # uint8 [B·T·P, 3, px, px]
    mix: torch.Tensor  # of each patch [B·T·P, 3, 3]
    pool_BxQxS: torch.Tensor  # shares of the patches under each bin
    near_BxQxQ: torch.Tensor  # weights of the contents around each bin that its query may see
    xy_um_Ax2: torch.Tensor
    size_um: torch.Tensor  # of bins [B·T·N], as the next three
    measured: torch.Tensor
    window: torch.Tensor
    step: torch.Tensor
    counts_QxG: torch.Tensor  # dense
    gene_mask_WxG: torch.Tensor  # windows of all rows
    log_depth_W: torch.Tensor  # −inf where it is not told
    one_group: bool  # all bins are written at once


class TorchStep:
    """The model, its optimiser and a batch: `step()` trains, as ours does."""

    def __init__(self, config: Config, parameters: Tree, calibration: Tree, batch: Batch, compute_dtype: str):
        """parameters, calibration: ours, copied. compute_dtype: as of ours. Raises `ValueError` for rows with padding:
        the attention of this peer knows none; and `InputError` for a likelihood that it does not know.
        """
        if config.model.total_likelihood != "poisson" or config.model.rare_gene_weight:
            raise InputError("bench step: the peer in torch knows Poisson totals and genes of one weight; give "
                             "--config.model.total_likelihood=poisson --config.model.rare_gene_weight=0")  # fmt: skip
        self.config, self.grown = config, Growth.of(config.model)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, compute_dtype)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_float32_matmul_precision("highest" if compute_dtype == "float32" else "high")
        self.calibration = {name: self._tensor(value) for name, value in calibration["he_encoder"].items()}
        self.depth = {name: self._tensor(value) for name, value in calibration["bin_encoder"].items()}
        layers = {name: np.asarray(value) for name, value in parameters["decoder"].items()}
        self.layers = [{name: self._weight(value[number]) for name, value in layers.items()}
                       for number in range(config.model.layers)]  # fmt: skip
        self.weights = {path: self._weight(value) for path, value in _leaves(parameters) if path[0] != "decoder"}
        leaves = self.leaves()
        rates, decay = self._rates(), config.optim.weight_decay
        # AdamW multiplies the decay by the rate too, which in ours does not depend on width
        groups = [{"params": [x for x, of in zip(leaves, rates, strict=True) if of == rate and (x.ndim > 1) == decays],
                   "weight_decay": decay / rate if decays else 0.0, "of_all": rate}
                  for rate in sorted(set(rates)) for decays in (True, False)]  # fmt: skip
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]], config.optim.learning_rate,
            (config.optim.b1, config.optim.b2), fused=True,
        )  # fmt: skip
        self.shape = batch.bin_step_BxTxN.shape, batch.he_BxTxPxYxXx3.shape[2]
        self.pyramid = Pyramid.of(config.data.patch_px)
        self.tokens = self._tokens(batch)
        self._steps = 0
        self._loss = (
            torch.compile(self.nats, fullgraph=True, dynamic=False) if self.device.type == "cuda" else self.nats
        )

    def leaves(self) -> list[torch.Tensor]:
        return [*self.weights.values(), *(x for layer in self.layers for x in layer.values())]

    def _rates(self) -> list[float]:
        """What multiplies the learning rate of each of `leaves()`."""
        config, genes = self.config, len(self.weights["gene_bias",])
        rates = build(config.model, genes, config.data.patch_px, content=not config.data.one_shot).rates()
        return [*(functools.reduce(dict.get, path, rates) for path in self.weights),
                *(rates["decoder"][name] for layer in self.layers for name in layer)]  # fmt: skip

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of training: the loss in nats per detection, and the gradients' norm before it is clipped."""
        loss, norm = self.gradients()
        self._steps += 1
        rate = self.config.optim.learning_rate * min(1.0, self._steps / (self.config.optim.warmup_steps + 1))
        for group in self.optimiser.param_groups:  # the warm-up of ours
            group["lr"] = group["of_all"] * rate
        self.optimiser.step()
        return loss, norm

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and norm; each leaf's `.grad` is left clipped."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        return loss.detach(), torch.nn.utils.clip_grad_norm_(self.leaves(), self.config.optim.clip_norm, foreach=True)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def nats(self) -> torch.Tensor:
        """Negative log-likelihood a detection; the multinomial coefficient left out, as ours does."""
        tokens = self.tokens
        he = self._he_tokens()
        queries = self._query_tokens(he)
        parts = [he, queries]
        if not self.config.data.one_shot:
            content = self._content_tokens() + queries
            parts = [he, content, queries + self._near(content)]
        x = self._decoder(torch.cat(parts))[-len(queries) :]
        h = self._norm(x, self.weights["head_norm",])
        total_weight, total_bias = self.weights["total_weight",], self.weights["total_bias",]
        log_density = h.float() @ total_weight + total_bias
        bias_G = self.weights["gene_bias",]
        with torch.no_grad():
            share_G = torch.softmax(bias_G, 0)
            measured_W = torch.where(tokens.gene_mask_WxG, share_G, 0.0).sum(1).clamp(min=1e-9)
            area = tokens.size_um.square() * tokens.measured.clamp(min=1e-3) * measured_W[tokens.window]
            n_Q = tokens.counts_QxG.sum(1)
        log_total = log_density + area.log()
        total_nats = (log_total.exp() - n_Q * log_total + torch.lgamma(n_Q + 1)).sum()
        h = h @ self._cast(self.weights["gene_in",]) / self.grown.gene_dim
        table = self._cast(self.weights["gene_table",])
        at_once = max(1, _LOGITS_AT_ONCE[self.device.type] // len(bias_G))
        chunks = [slice(first, first + at_once) for first in range(0, len(h), at_once)]
        gene_nats = 0.0
        for of in chunks:
            given = h[of], table, bias_G, tokens.counts_QxG[of], tokens.gene_mask_WxG[tokens.window[of]]
            # where all logits fit they are kept, else made again
            part = _gene_nats(*given) if len(chunks) == 1 else checkpoint(_gene_nats, *given, use_reentrant=False)
            gene_nats = gene_nats + part
        return (total_nats + gene_nats) / n_Q.sum().clamp(min=1.0)

    # --- encoders

    def _he_tokens(self) -> torch.Tensor:
        """[B·T·P, d]."""
        w = {path[1]: self._cast(x) for path, x in self.weights.items() if path[0] == "he_encoder"}
        with torch.no_grad():
            density = self._density()
            texture = (_texture(density) - self.calibration["texture_mean"]) / self.calibration["texture_scale"]
            texture = texture.clamp(-6.0, 6.0).to(self.dtype)
            cell_px, cells, large = self.pyramid
            tiles, side, px = self.shape[0][0] * self.shape[0][1], round(self.shape[1] ** 0.5), density.shape[-1]
            x = density.to(self.dtype).view(tiles, side, side, 3, px, px).permute(0, 3, 1, 4, 2, 5)
            x = _joined(x.reshape(tiles, 3, side * px, side * px), cell_px)
        x = _convolved(x, w["stem_in"], w["stem_bias"])
        x = x + _convolved(x, w["stem_conv"], w["stem_conv_bias"])
        x = torch.einsum("tiyx,ic->tcyx", _joined(x, cells), w["stem_join"])
        x = F.gelu(x + w["stem_join_bias"][:, None, None], approximate="tanh")
        for kernel, bias in zip(w["wide_conv"], w["wide_conv_bias"], strict=True):
            x = x + _convolved(x, kernel, bias)
        x = _joined(x, large).permute(0, 2, 3, 1)
        seen = x.reshape(-1, x.shape[-1]) @ w["stem_out"]
        known = F.gelu(torch.addmm(w["texture_bias"], texture, w["texture_in"]), approximate="tanh")
        return torch.addmm(seen, known, w["texture_hidden"])

    def _density(self) -> torch.Tensor:
        """Standardised stain densities [B·T·P, 3, px, px], float32."""
        he = self.tokens.he
        optical = -((he.float() + 1.0) / 256.0).log()
        mix = self._tensor(STAINS_3x3) @ self.tokens.mix
        density = (mix.transpose(1, 2) @ optical.flatten(2)).view(he.shape)
        mean, scale = (self.calibration[name].view(3, 1, 1) for name in ("density_mean", "density_scale"))
        return (density - mean) / scale

    def _query_tokens(self, he: torch.Tensor) -> torch.Tensor:
        """[B·T·N, d]."""
        (B, _, _), w = self.shape[0], self._of("bin_encoder")
        under = (self.tokens.pool_BxQxS @ he.view(B, -1, he.shape[1])).flatten(0, 1)
        size = (self.tokens.size_um / 36.0).log()
        place = torch.stack([torch.ones_like(size), size], 1).to(self.dtype)
        return (
            self._norm(under, w["query_norm"]) @ w["query_he"]
            + place @ w["query_size"]
            + self._known_depth() @ w["query_depth"]
        )

    def _known_depth(self) -> torch.Tensor:
        """[B·T·N, 2]: whether the depth of its section is told, and what it is."""
        tokens = self.tokens
        with torch.no_grad():
            share_W = torch.where(tokens.gene_mask_WxG, torch.softmax(self.weights["gene_bias",], 0), 0.0).sum(1)
            told_W = tokens.log_depth_W.isfinite()
            depth_W = tokens.log_depth_W - share_W.clamp(min=1e-9).log() - self.depth["depth_mean"]
            depth_W = (depth_W / self.depth["depth_scale"]).clamp(-4.0, 4.0).masked_fill(~told_W, 0.0)
            known_Wx2 = torch.stack([told_W.float(), depth_W], 1)
            return known_Wx2[tokens.window].to(self.dtype)

    def _content_tokens(self) -> torch.Tensor:
        """[B·T·N, d]."""
        w, tokens = self._of("bin_encoder"), self.tokens
        table = self._cast(self.weights["gene_table",]) if self.config.model.tie_genes else w["gene_table"]
        with torch.no_grad():
            share_WxG = torch.where(tokens.gene_mask_WxG, torch.softmax(self.weights["gene_bias",], 0), 0.0)
            share_WxG = share_WxG / share_WxG.sum(1, keepdim=True).clamp(min=1e-9)
            total = tokens.counts_QxG.sum(1)
            mean_QxG = total[:, None] * share_WxG[tokens.window]
            residual = (tokens.counts_QxG + 0.375).sqrt() - (mean_QxG + 0.375).sqrt()
            residual = residual.masked_fill(~tokens.gene_mask_WxG[tokens.window], 0.0).to(self.dtype)
            density = ((total + 0.5) / (tokens.size_um.square() * tokens.measured.clamp(min=0.05))).log()
            place = torch.stack([density, (tokens.size_um / 36.0).log()], 1).to(self.dtype)
        return (
            (residual @ table) @ w["content_in"] + place @ w["content_total"] + self._known_depth() @ w["content_depth"]
        )

    def _near(self, content: torch.Tensor) -> torch.Tensor:
        """What each query knows of contents around it, [B·T·N, d]."""
        near_BxQxQ, w = self.tokens.near_BxQxQ, self._of("bin_encoder")
        known = near_BxQxQ.sum(2, keepdim=True)
        mean = (near_BxQxQ / (known + 1)).to(self.dtype) @ content.view(len(near_BxQxQ), -1, content.shape[1])
        share = (known / (known + 1)).flatten(0, 1).to(self.dtype) * w["near_known"]
        return mean.flatten(0, 1) @ w["near_in"] + share

    # --- decoder

    def _decoder(self, x: torch.Tensor) -> torch.Tensor:
        """[A, d] after all layers."""
        model = self.config.model
        turn = self._turn()
        seen = len(x) - math.prod(self.shape[0])
        masks = {kind: self._masks(kind == "local") for kind in set(model.pattern)}
        for number, layer in enumerate(self.layers):
            w = {name: self._cast(value) for name, value in layer.items()}
            kind = model.pattern[number % len(model.pattern)]
            h = self._norm(x, w["attention_norm"])
            q, k, v = ((part @ w[name].flatten(1)).view(len(part), -1, model.head_dim)
                       for name, part in (("q", h), ("k", h[:seen]), ("v", h[:seen])))  # fmt: skip
            q_norm = w["q_norm"] * self.grown.head_dim**-0.5
            q = self._norm(q, q_norm) + w["q_reach"].view(q.shape[1:])
            k = self._norm(k, w["k_norm"]) + w["k_reach"].view(k.shape[1:])
            q, k = _turned(q, turn), _turned(k, turn[:, :seen])
            read = self._attention(q, k, v, kind == "local", masks[kind])
            x = torch.addmm(x, read, w["attention_out"].flatten(0, 1))
            h = self._norm(x, w["mlp_norm"])
            x = torch.addmm(x, F.silu(h @ w["mlp_gate"]) * (h @ w["mlp_in"]), w["mlp_out"])
        return x

    def _attention(self, q, k, v, local: bool, masks) -> torch.Tensor:
        """[A, H·D] of q [A, H, D] and k, v [S, K, D]."""
        (B, T, N), P = self.shape
        patches, bins, X = B * T * P, B * T * N, self._sequences(local)

        def by_sequence(x):  # [X, heads, tokens, D]
            return x.unflatten(0, (X, -1)).transpose(1, 2)

        def attend(q, k, v, mask=None):
            if mask is not None and q.is_cuda:  # the GPU kernel that takes a mask takes no shared heads
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1])
            return out.transpose(1, 2).reshape(-1, out.shape[1] * out.shape[3])

        he_k, he_v = by_sequence(k[:patches]), by_sequence(v[:patches])
        out = [attend(by_sequence(q[:patches]), he_k, he_v)]
        if len(k) > patches:
            all_k, all_v = (torch.cat([a, by_sequence(b[patches:])], 2) for a, b in ((he_k, k), (he_v, v)))
            out.append(attend(by_sequence(q[patches : patches + bins]), all_k, all_v, masks[0]))
        queries = by_sequence(q[-bins:])
        if masks[1] is None:  # nothing was written before them
            out.append(attend(queries, he_k, he_v))
        else:
            out.append(attend(queries, all_k, all_v, masks[1]))
        return torch.cat(out)

    def _sequences(self, local: bool) -> int:
        (B, T, _), data = self.shape[0], self.config.data
        return B * T if local else B * (1 if data.sequence == "patient" else data.windows_per_row)

    def _masks(self, local: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of contents and of queries, [X, 1, bins, patches + bins]; None where none is needed."""
        (_, _, N), P = self.shape
        if self.tokens.one_group or self.config.data.one_shot:
            return None, None
        step = self.tokens.step.view(self._sequences(local), -1)
        he = torch.ones(*step.shape, step.shape[1] // N * P, dtype=torch.bool, device=self.device)
        return tuple(torch.cat([he, step[:, None, :] <= reads[:, :, None]], 2)[:, None] for reads in (step, step - 1))

    def _turn(self) -> torch.Tensor:
        """Cosines and signed sines [2, A, 1, D], the same in all layers."""
        pairs = self.config.model.head_dim // 4
        step = math.log(LONGEST_UM / SHORTEST_UM) / max(pairs - 1, 1)
        turns = torch.exp(-step * torch.arange(pairs, dtype=torch.float32, device=self.device)) / SHORTEST_UM
        angle = 2 * math.pi * self.tokens.xy_um_Ax2[:, :, None, None] * turns  # [A, axis, 1, P]
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([torch.cat([cos, cos], 2), torch.cat([-sin, sin], 2)]).flatten(2)[:, :, None]

    # --- from ours

    def _tokens(self, batch: Batch) -> Tokens:
        (B, T, N), P = self.shape
        full = (batch.segment_BxT >= 0).all() and (batch.bin_measured_BxTxN > 0).all()
        if not full:
            raise ValueError("a row has padding; expected full rows")
        G = batch.measured_gene_BxWxG.shape[2]
        counts_QxG = np.zeros((B * T * N, G), np.float32)
        for row in range(B):
            bins, genes, counts = (x[row] for x in (batch.count_bin_BxC, batch.count_gene_BxC, batch.count_BxC))
            held = bins >= 0
            np.add.at(counts_QxG, (row * T * N + bins[held], genes[held]), counts[held])
        pool_BxQxS = np.zeros((B, T * N, T * P), np.float32)
        number, weight = (x.reshape(B, T * N, -1) for x in (batch.pool_patch_BxTxNxM, batch.pool_weight_BxTxNxM))
        np.add.at(pool_BxQxS, (np.arange(B)[:, None, None], np.arange(T * N)[:, None], number), weight)
        near_BxQxQ = np.zeros((B, T * N, T * N), np.float32)
        number, weight = (x.reshape(B, T * N, -1) for x in (batch.near_bin_BxTxNxV, batch.near_weight_BxTxNxV))
        np.add.at(near_BxQxQ, (np.arange(B)[:, None, None], np.arange(T * N)[:, None], number), weight)
        step_BxQ = batch.bin_step_BxTxN.reshape(B, T * N)
        near_BxQxQ *= step_BxQ[:, None, :] < step_BxQ[:, :, None]
        patch_xy, bin_xy = (x.reshape(-1, 2) for x in (batch.patch_xy_um_BxTxPx2, batch.bin_xy_um_BxTxNx2))
        xy_um = [patch_xy, bin_xy] if self.config.data.one_shot else [patch_xy, bin_xy, bin_xy]
        windows = batch.measured_gene_BxWxG.shape[1]
        window = np.repeat(batch.window_BxT + windows * np.arange(B)[:, None], N, axis=1).reshape(-1)
        side = batch.he_BxTxPxYxXx3.shape[3]
        he = np.moveaxis(batch.he_BxTxPxYxXx3, -1, 3).reshape(B * T * P, 3, side, side)
        return Tokens(
            self._tensor(he), self._tensor(np.repeat(batch.stain_mix_BxTx3x3.reshape(-1, 3, 3), P, 0)),
            self._tensor(pool_BxQxS).to(self.dtype), self._tensor(near_BxQxQ), self._tensor(np.concatenate(xy_um)),
            self._tensor(batch.bin_size_um_BxTxN.reshape(-1)), self._tensor(batch.bin_measured_BxTxN.reshape(-1)),
            self._tensor(window), self._tensor(batch.bin_step_BxTxN.reshape(-1)), self._tensor(counts_QxG),
            self._tensor(batch.measured_gene_BxWxG.reshape(-1, G)), self._tensor(batch.log_depth_BxW.reshape(-1)),
            bool((batch.bin_step_BxTxN == 1).all()),
        )  # fmt: skip

    def _of(self, part: str) -> dict[str, torch.Tensor]:
        return {path[1]: self._cast(x) for path, x in self.weights.items() if path[0] == part}

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype)

    def _norm(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), scale.to(x.dtype), 1e-6)

    def _tensor(self, x: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(x)).to(self.device)

    def _weight(self, x: Any) -> torch.Tensor:
        return self._tensor(x).requires_grad_()


def _leaves(tree: Tree) -> list[tuple[tuple[str, ...], np.ndarray]]:
    return [(tuple(key.key for key in path), np.asarray(value))
            for path, value in jax.tree_util.tree_leaves_with_path(tree)]  # fmt: skip


def _gene_nats(h_QxR, table_GxR, bias_G, counts_QxG, mask_QxG) -> torch.Tensor:
    logits = ((h_QxR @ table_GxR.t()).float() + bias_G).masked_fill(~mask_QxG, _MASKED)
    return -(counts_QxG * F.log_softmax(logits, 1)).sum()


def _turned(x_SxHxD: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Rotary places: pairs lie D/4 apart within each half of the width."""
    cos, sin = turn
    wide = x_SxHxD.float()
    swapped = wide.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3)
    return torch.addcmul(wide * cos, swapped, sin).to(x_SxHxD.dtype)


def _joined(x_TxCxYxX: torch.Tensor, cells: int) -> torch.Tensor:
    """Squares of cells as one, [T, cells² C, Y / cells, X / cells]."""
    T, C, Y, X = x_TxCxYxX.shape
    squares = x_TxCxYxX.reshape(T, C, Y // cells, cells, X // cells, cells).permute(0, 3, 5, 1, 2, 4)
    return squares.reshape(T, cells * cells * C, Y // cells, X // cells).contiguous(memory_format=torch.channels_last)


def _convolved(x_TxCxYxX: torch.Tensor, weight_9CxE: torch.Tensor, bias_E: torch.Tensor) -> torch.Tensor:
    kernel = weight_9CxE.view(3, 3, x_TxCxYxX.shape[1], -1).permute(3, 2, 0, 1)
    return F.gelu(F.conv2d(x_TxCxYxX, kernel, bias_E, padding=1), approximate="tanh")


def _texture(density: torch.Tensor) -> torch.Tensor:
    """As `tario_jax.model.stain.texture_statistics`, of [patches, 3, px, px]."""

    def average(x):
        return x.flatten(2).mean(2) if x.ndim == 4 else x.flatten(1).mean(1)

    mean = average(density)
    centred = density - mean[:, :, None, None]
    deviation = (average(centred.square()) + 1e-6).sqrt()
    together = average(centred[:, 0] * centred[:, 1]) / (deviation[:, 0] * deviation[:, 1] + 1e-3)
    parts = [mean, deviation, together[:, None]]
    stains = density[:, :2]
    parts += [average((1.5 * (stains - threshold) + 0.5).clamp(0.0, 1.0)) for threshold in THRESHOLDS]
    for lag in [lag for lag in LAGS_PX if 2 * lag < density.shape[2]]:
        along_x = stains[..., :, lag:] - stains[..., :, :-lag]
        along_y = stains[..., lag:, :] - stains[..., :-lag, :]
        parts.append((average(along_x.square()) + average(along_y.square()) + 1e-6).sqrt())
        middle = slice(lag, -lag)
        around = (stains[..., 2 * lag :, middle] + stains[..., : -2 * lag, middle]
                  + stains[..., middle, 2 * lag :] + stains[..., middle, : -2 * lag])  # fmt: skip
        parts.append((average((around - 4 * stains[..., middle, middle]).square()) + 1e-6).sqrt())
    h = density[:, 0]
    dx, dy = h[:, 1:-1, 2:] - h[:, 1:-1, :-2], h[:, 2:, 1:-1] - h[:, :-2, 1:-1]
    xx, yy, xy = average(dx * dx), average(dy * dy), average(dx * dy)
    parts.append((((xx - yy).square() + 4 * xy.square()).sqrt() / (xx + yy + 1e-3))[:, None])
    return torch.cat(parts, 1)
