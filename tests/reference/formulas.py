"""The layers of the supported encoders as float64 numpy formulas.

Shapes: ``T`` tokens of one text, ``n`` query heads, ``m`` key heads, ``S`` keys, ``d`` numbers per head.
"""

import math

import numpy as np

from .checkpoint_files import Array

_erf = np.vectorize(math.erf, otypes=[np.float64])


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x W^T + b, with W stored [out, in]."""
    out: Array = x @ weight.T
    return out if bias is None else out + bias


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Ba et al. 2016, with the biased variance."""
    centred = x - x.mean(-1, keepdims=True)
    out: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias
    return out


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Zhang and Sennrich 2019."""
    out: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    return out


def gelu(x: Array) -> Array:
    """Exact GELU: x Phi(x), by the error function."""
    out: Array = x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))
    return out


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    out: Array = 1.0 / (1.0 + np.exp(-x))
    return out


def inverse_frequencies(theta: float, dim: int) -> Array:
    """theta^(-2i/dim) for i < dim/2 (Su et al. 2021)."""
    out: Array = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    return out


def rotate(x: Array, frequencies: Array, *, interleaved: bool) -> Array:
    """Rotary embedding of x [n, T, d] at positions 0..T-1.

    Pair i is (x[i], x[i + d/2]), the halves of Llama, or (x[2i], x[2i + 1]), interleaved as in RoFormer and
    DeepSeek. An interleaved result comes back in halves: a permutation common to queries and keys changes no
    score.
    """
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    angle = np.arange(x.shape[-2], dtype=np.float64)[:, None] * frequencies
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def split_heads(x: Array, heads: int) -> Array:
    """[T, n * d] to [n, T, d]."""
    out: Array = x.reshape(x.shape[0], heads, -1).swapaxes(0, 1)
    return out


def attention(query: Array, key: Array, value: Array, scale: float) -> Array:
    """Full (unmasked) attention; each of the m key heads serves n / m query heads. Returns [T, n * d_v]."""
    groups = query.shape[0] // key.shape[0]
    key, value = key.repeat(groups, axis=0), value.repeat(groups, axis=0)
    score = query @ key.swapaxes(-1, -2) * scale
    weight = np.exp(score - score.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    out: Array = (weight @ value).swapaxes(0, 1).reshape(query.shape[1], -1)
    return out


def unit(x: Array) -> Array:
    """x / |x|."""
    out: Array = x / np.linalg.norm(x)
    return out
