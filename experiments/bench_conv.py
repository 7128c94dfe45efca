"""Suite `conv` of `experiments.bench`: one convolution by every way there is, here and in PyTorch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.interleaved import Row, compare
from experiments.peers import torch_peers
from fftlm_jax.spectral import causal_convolve

_TAPS = (32, 64, 128, 256)
_METHODS = ("fft", "toeplitz")


def bench_conv(rounds: int) -> list[Row]:
    """The operation alone against PyTorch's, its temporary memory, and the crossover between two projections."""
    return [*_against_torch(rounds), *_memory(), *_crossover(rounds)]


def plain_fft(u_BTD: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    """What one would write first: transforms along the middle axis, at the next power of two, JAX's own gradient."""
    T, D = u_BTD.shape[1:]
    n = 1 << (T + kernel_HK.shape[1] - 2).bit_length()
    kernel_KD = jnp.repeat(kernel_HK, D // kernel_HK.shape[0], axis=0).T
    product = jnp.fft.rfft(u_BTD, n=n, axis=1) * jnp.fft.rfft(kernel_KD, n=n, axis=0)
    return jnp.fft.irfft(product, n=n, axis=1)[:, :T]


def ways() -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
    """Convolutions [B, T, D] x [H, K] -> [B, T, D] by name."""
    own = {name: lambda u, k, name=name: causal_convolve(u, k, name) for name in _METHODS}
    return {"plain jnp.fft": plain_fft, **own}


def _operands(B: int, T: int, D: int, H: int, K: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    u, dy = (jax.random.normal(key, (B, T, D)) for key in keys[:2])
    return u, jax.random.normal(keys[2], (H, K)) / K**0.5, dy


def _gradient(convolve: Callable) -> Callable:
    """Forward and backward: outputs and both gradients, none of which can be left out."""

    def both(u: jax.Array, kernel: jax.Array, dy: jax.Array) -> Any:
        y, transpose = jax.vjp(convolve, u, kernel)
        return y, transpose(dy)

    return both


def _against_torch(rounds: int) -> list[Row]:
    rows, peers = [], torch_peers()
    for B in (4, 8):
        u, kernel, dy = _operands(B, 1024, 512, 8, 128)
        forward = {name: jax.jit(way) for name, way in ways().items()}
        both = {name: jax.jit(_gradient(way)) for name, way in ways().items()}
        sides = {name: lambda f=f: f(u, kernel) for name, f in forward.items()}
        both_sides = {name: lambda f=f: f(u, kernel, dy) for name, f in both.items()}
        for name, (torch_forward, torch_both) in (peers.convolution_sides(u, kernel, dy) if peers else {}).items():
            sides[name], both_sides[name] = torch_forward, torch_both
        case = f"B={B} T=1024 D=512 H=8 K=128"
        rows.append(compare(f"convolution, forward, {case}", sides, rounds))
        rows.append(compare(f"convolution, forward and backward, {case}", both_sides, rounds))
    return rows


def _memory() -> list[Row]:
    """Temporary memory of forward and backward, by the compiler's own account."""
    operands = _operands(4, 1024, 512, 8, 128)
    row: Row = {"case": "temporary memory, forward and backward, B=4 T=1024 D=512 H=8 K=128"}
    for name, way in ways().items():
        analysis = jax.jit(_gradient(way)).lower(*operands).compile().memory_analysis()
        row[f"{name} MiB"] = round(analysis.temp_size_in_bytes / 2**20, 1)
    return [row]


def _crossover(rounds: int) -> list[Row]:
    """The two methods behind and before a projection, forward and backward: the table behind `choose_method`."""
    rows = []
    for B, T, D in ((4, 1024, 512), (8, 256, 128)):
        for K in _TAPS:
            if K > T:
                continue
            u, kernel, _ = _operands(B, T, D, 8, K)
            w = jax.random.normal(jax.random.key(1), (D, D)) / D**0.5

            def loss(x: jax.Array, kernel: jax.Array, w: jax.Array, method: str) -> jax.Array:
                y = causal_convolve((x.reshape(-1, x.shape[-1]) @ w).reshape(x.shape), kernel, method)
                return jnp.sum(jax.nn.silu(y).reshape(-1, x.shape[-1]) @ w)

            gradient = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)
            sides = {
                method: lambda method=method, u=u, kernel=kernel, w=w: gradient(u, kernel, w, method)
                for method in _METHODS
            }
            rows.append(compare(f"between projections, forward and backward, B={B} T={T} D={D} K={K}", sides, rounds))
    return rows
