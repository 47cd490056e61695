"""How far heads look when training begins.

Queries and keys get a constant each before they are turned by their place (ops/rotary.py). The product of the two then
depends on the distance alone, and the softmax over it is a kernel around each token: it falls as exp(−|x| / l) nearby
and as a power of the distance far away, along both axes of the tissue. So a head begins as a mean over surroundings of
a size of its own, however large the window is, and not as a mean over the whole window. Both constants are trained.

Σ_p λ_p (1 − cos(2π x / λ_p)) over wavelengths λ_p of even spacing ln ρ in the logarithm is π² |x| / ln ρ, since
∫ (1 − cos u) / u² du from 0 to ∞ is π / 2; wavelengths beyond _FLAT lengths l count no more than one of that size.

Axes: H heads, K heads of keys, D width of a head, P = D / 4 wavelengths.
"""

import math

import numpy as np

_FLAT = 10.0


def reach_constants(heads: int, kv_heads: int, width: int, reach_um: tuple[float, ...], *, shortest_um: float,
                    longest_um: float) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Constants of queries [H, D] and of keys [K, D], float32, for scores that are divided by √D.

    reach_um: lengths l of the first and of the last head of queries; between them they run geometrically, and one head
    has the mean one. Empty: zeros, with which training starts at means over all that is visible. Wavelengths: those of
    the turns.
    """
    if not reach_um:
        return np.zeros((heads, width), np.float32), np.zeros((kv_heads, width), np.float32)
    nearest_um, farthest_um = reach_um
    pairs = width // 4
    spacing = math.log(longest_um / shortest_um) / max(pairs - 1, 1)
    wave_um_P = shortest_um * np.exp(spacing * np.arange(pairs))
    share_H = np.linspace(0, 1, heads) if heads > 1 else np.array([0.5])
    length_um_Hx1 = nearest_um * (farthest_um / nearest_um) ** share_H[:, None]
    score_HxP = np.minimum(wave_um_P / length_um_Hx1, _FLAT) * spacing / math.pi**2
    key_P = np.sqrt(score_HxP.max(0) * width**0.5)  # as large as what it meets
    query_HxP = score_HxP * width**0.5 / key_P
    return _of_both_axes(query_HxP), _of_both_axes(np.broadcast_to(key_P, (kv_heads, pairs)))


def _of_both_axes(x_XxP: np.ndarray) -> np.ndarray:
    """In the first member of each pair along x and along y; 0 in the second: [X, D] float32."""
    wide_Xx2x2xP = np.zeros((len(x_XxP), 2, 2, x_XxP.shape[1]), np.float32)
    wide_Xx2x2xP[:, :, 0] = x_XxP[:, None]
    return wide_Xx2x2xP.reshape(len(x_XxP), -1)
