"""The convolution mixer: per-head causal long convolutions, gated and projected, or plain.

    u = W_in z;  y = causal_convolve(u) * gain;  out = W_out (y * silu(W_gate z))

Shapes: B batch, T time, D width, H conv heads, K taps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fftlm_jax.config import ModelConfig
from fftlm_jax.model.layers import linear, project
from fftlm_jax.parallel import on_own_rows
from fftlm_jax.spectral import (
    LowPass,
    causal_convolve,
    convolve_window,
    kernel_taps,
    low_pass_signal,
    low_pass_taps,
    taps_to_spectrum,
    toeplitz_matrix,
)


def initial_taps(key: jax.Array, heads: int, kernel_len: int) -> jax.Array:
    """Decaying random kernels [H, K] whose memory grows geometrically from head to head.

    Head h decays with time constant K^((h + 1/2) / H) taps, so that a layer starts with short and long views alike;
    every kernel has unit norm, which keeps the variance of its input.
    """
    time_constant = kernel_len ** ((np.arange(heads) + 0.5) / heads)
    envelope = np.exp(-np.arange(kernel_len) / time_constant[:, None])
    taps = jax.random.normal(key, (heads, kernel_len)) * jnp.asarray(envelope, jnp.float32)
    return taps / jnp.linalg.norm(taps, axis=-1, keepdims=True)


class ConvolutionMixer(nnx.Module):
    """Mixes time by per-head causal convolutions; gated and projected, or plain as in the source documents.

    The kernels' parameters are their cosine spectra or, with `kernel_basis="taps"`, their taps: the same functions in
    another basis, which an optimizer that scales coordinates walks through differently.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, dtype = config.d_model, jnp.dtype(config.dtype)
        self.method = config.conv_method
        self.kernel_basis = config.kernel_basis
        taps = initial_taps(rngs.params(), config.conv_heads, config.kernel_len)
        if config.kernel_basis == "cosine":
            self.spectrum = nnx.Param(taps_to_spectrum(taps))
        else:
            self.taps = nnx.Param(taps)
        self.gain = nnx.Param(jnp.ones((D,)))
        self.dtype = dtype
        self.projections = config.projections
        if config.projections:
            self.w_in = linear(D, D, 1.0, dtype, rngs)
            self.w_gate = linear(D, D, 1.0, dtype, rngs)
            self.w_out = linear(D, D, (2 * config.n_layers) ** -0.5, dtype, rngs)

    def __call__(self, z_BTD: jax.Array, low_pass: LowPass) -> jax.Array:
        taps_HK = self.kernels(low_pass)

        def convolve(u_BTD: jax.Array, taps_HK: jax.Array) -> jax.Array:
            y = causal_convolve(u_BTD, taps_HK, self.method)
            return low_pass_signal(y, low_pass, taps_HK.shape[-1]) if low_pass.method == "signal" else y

        return self._outputs(on_own_rows(convolve, self._inputs(z_BTD), taps_HK), z_BTD)

    def kernels(self, low_pass: LowPass) -> jax.Array:
        """Taps [H, K] under a band limit."""
        if self.kernel_basis == "cosine":
            return kernel_taps(self.spectrum[...], low_pass)
        return low_pass_taps(self.taps[...], low_pass)

    @staticmethod
    def at_width(taps_HK: jax.Array, block: int) -> jax.Array:
        """What `extend` multiplies windows with, for blocks of S positions: [H, K - 1 + S, S]."""
        return toeplitz_matrix(taps_HK, block, taps_HK.shape[-1] - 1 + block)

    def empty_past(self, batch: int, taps_HK: jax.Array) -> jax.Array:
        """The inputs before the first: zeros [B, D, K - 1], as a training window sees them."""
        return jnp.zeros((batch, self.gain.shape[0], taps_HK.shape[-1] - 1), self.dtype)

    def extend(self, past_BDW: jax.Array, z_BSD: jax.Array, matrix_HWS: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mixer at the S positions that follow a past; also the past and they as one window [B, D, K - 1 + S]."""
        window_BDW = jnp.concatenate([past_BDW, self._inputs(z_BSD).swapaxes(1, 2)], axis=-1)
        return self._outputs(convolve_window(window_BDW, matrix_HWS), z_BSD), window_BDW

    def _inputs(self, z_BTD: jax.Array) -> jax.Array:
        return project(self.w_in, z_BTD) if self.projections else z_BTD

    def _outputs(self, y_BTD: jax.Array, z_BTD: jax.Array) -> jax.Array:
        # In float32, as is then the gradient of the gain, a sum over all positions.
        y_BTD = (y_BTD * self.gain[...]).astype(y_BTD.dtype)
        if not self.projections:
            return y_BTD
        return project(self.w_out, y_BTD * jax.nn.silu(project(self.w_gate, z_BTD)))
