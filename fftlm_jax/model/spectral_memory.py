"""Spectral memory: a slow average of the spectra of past pieces of the input, beside the blocks.

The input is cut into pieces of P bytes (scaled to [-1, 1]); F is the orthonormal rfft of a piece. Each frequency bin
keeps one complex state h, with learned rho in (0, 1) and, for `aligned`, theta in (-pi, pi):

`aligned`   h <- rho e^(i theta) |h| F/|F| + (1 - rho) F: h is turned to the phase of F, then averaged with it.
`polar`     h <- (rho |h| + (1 - rho) |F|) F/|F|: magnitudes are averaged, the phase is that of F.

Both are stable: |h| never exceeds the largest |F| so far. A bin that is silent in a piece (|F| = 0) has no phase; h
then starts from its own. A state may be read only from the end of its piece on: position t reads the state after
piece floor((t + 1) / P) - 1, and h = 0 before the first.

`polar` is a linear recurrence of magnitudes and is computed as a parallel scan. `aligned` is not linear (the magnitude
of a sum), so it is a sequential scan over the T / P pieces.
Shapes: B batch, T time, P piece, N = T // P pieces, F = P // 2 + 1 bins, D width; while decoding, S new bytes.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fftlm_jax.config.schema import ModelConfig
from fftlm_jax.model.layers import Projection, compute_dtype
from fftlm_jax.parallel import on_own_rows

_INITIAL_RHO = 0.95
# Below this a bin counts as silent: under the least step of a byte (1/128) and above the round-off of an rfft.
_SILENT = 1e-4


class MemoryPast(NamedTuple):
    """What a memory knows of the bytes so far: its state, the last P - 1 bytes, and how many of them begin a piece."""

    state_BF: jax.Array
    recent_BW: jax.Array
    phase_B: jax.Array


class MemoryWindow(NamedTuple):
    """A past and the S bytes after it: the states after 0, 1, ... of the pieces that end among them."""

    states_BNF: jax.Array
    recent_BW: jax.Array
    phase_B: jax.Array


class SpectralMemory(nnx.Module):
    """What the head reads of the spectra of past pieces, as a vector to add to the hidden states."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.kind = config.memory
        self.piece = config.memory_piece
        bins = self.piece // 2 + 1
        self.rho = nnx.Param(jnp.full((bins,), math.log(_INITIAL_RHO / (1 - _INITIAL_RHO))))  # Before the sigmoid.
        if self.kind == "aligned":
            self.theta = nnx.Param(jnp.zeros((bins,)))  # Before pi * tanh.
        # Small: the blocks should not have to unlearn it.
        self.w_read = Projection(2 * bins, config.d_model, 0.1, compute_dtype(config), rngs)

    def __call__(self, bytes_BT: jax.Array) -> jax.Array:
        """Reads the memory at every position: [B, T] bytes -> [B, T, D], float32."""
        rho_F = jax.nn.sigmoid(self.rho[...])
        # The whole recurrence, not the FFTs alone: a device would send a few numbers to the others at every piece.
        if self.kind == "polar":
            states_BNF = on_own_rows(functools.partial(_polar_memory, piece=self.piece), bytes_BT, rho_F)
        else:
            theta_F = jnp.pi * jnp.tanh(self.theta[...])
            states_BNF = on_own_rows(functools.partial(_aligned_memory, piece=self.piece), bytes_BT, rho_F, theta_F)
        features = jnp.concatenate([states_BNF.real, states_BNF.imag], axis=-1)
        read_BND = self.w_read(jnp.pad(features, ((0, 0), (1, 0), (0, 0))))
        return read_BND[:, pieces_done(bytes_BT.shape[1], self.piece)]

    def empty_past(self, batch: int) -> MemoryPast:
        """Nothing heard yet."""
        P, F = self.piece, self.rho.shape[0]
        recent = jnp.zeros((batch, P - 1), jnp.int32)
        return MemoryPast(jnp.zeros((batch, F), jnp.complex64), recent, jnp.zeros(batch, jnp.int32))

    def extend(self, past: MemoryPast, bytes_BS: jax.Array) -> tuple[jax.Array, MemoryWindow]:
        """Reads the memory at the S positions that follow a past: [B, S] bytes -> [B, S, D], and the new window.

        Rows may be at different places of their pieces; a piece ends where P bytes since the last end are together.
        """
        S, P = bytes_BS.shape[1], self.piece
        N = (P - 1 + S) // P  # Pieces that may end here.
        recent_BW = jnp.concatenate([past.recent_BW, bytes_BS.astype(jnp.int32)], axis=1)
        whole = jax.vmap(lambda row, first: jax.lax.dynamic_slice(row, (first,), (N * P,)))
        pieces_BNP = whole(jnp.pad(recent_BW, ((0, 0), (0, P))), P - 1 - past.phase_B)
        ends_BN = P * (1 + jnp.arange(N)) <= past.phase_B[:, None] + S

        def advance(h_BF: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            spectrum_BF, ends_B = piece
            h_BF = jnp.where(ends_B[:, None], self._next_state(h_BF, spectrum_BF), h_BF)
            return h_BF, h_BF

        spectra_NBF = piece_spectra(pieces_BNP, P).swapaxes(0, 1)
        _, states_NBF = jax.lax.scan(advance, past.state_BF, (spectra_NBF, ends_BN.T))
        states_BNF = jnp.concatenate([past.state_BF[:, None], states_NBF.swapaxes(0, 1)], axis=1)
        read_BND = self.w_read(jnp.concatenate([states_BNF.real, states_BNF.imag], axis=-1))
        newest_BS = (past.phase_B[:, None] + 1 + jnp.arange(S)) // P
        read_BSD = jnp.take_along_axis(read_BND, newest_BS[..., None], axis=1)
        return read_BSD, MemoryWindow(states_BNF, recent_BW, past.phase_B)

    def _next_state(self, h_BF: jax.Array, spectrum_BF: jax.Array) -> jax.Array:
        rho_F = jax.nn.sigmoid(self.rho[...])
        if self.kind == "polar":
            return next_polar_state(h_BF, spectrum_BF, rho_F)
        keep_F = rho_F * jnp.exp(1j * jnp.pi * jnp.tanh(self.theta[...]))
        return next_aligned_state(h_BF, spectrum_BF, rho_F, keep_F)


def past_of(window: MemoryWindow, count_B: jax.Array, piece: int) -> MemoryPast:
    """What is known after the first `count_B` of a window's new bytes."""
    heard_B = window.phase_B + count_B
    state_BF = jnp.take_along_axis(window.states_BNF, (heard_B // piece)[:, None, None], axis=1)[:, 0]
    cut = jax.vmap(lambda row, first: jax.lax.dynamic_slice(row, (first,), (piece - 1,)))
    return MemoryPast(state_BF, cut(window.recent_BW, count_B), heard_B % piece)


def _polar_memory(bytes_BT: jax.Array, rho_F: jax.Array, piece: int) -> jax.Array:
    return polar_states(piece_spectra(bytes_BT, piece), rho_F)


def _aligned_memory(bytes_BT: jax.Array, rho_F: jax.Array, theta_F: jax.Array, piece: int) -> jax.Array:
    return aligned_states(piece_spectra(bytes_BT, piece), rho_F, theta_F)


def pieces_done(length: int, piece: int) -> jax.Array:
    """How many whole pieces end at or before each of `length` positions: the newest state that each may read."""
    return (jnp.arange(length) + 1) // piece


def piece_spectra(bytes_BT: jax.Array, piece: int) -> jax.Array:
    """Orthonormal rfft of every whole piece, complex64 [B, N, F]; silent bins are exactly 0."""
    B, T = bytes_BT.shape
    whole = bytes_BT[:, : T - T % piece].reshape(B, -1, piece)
    spectra = jnp.fft.rfft(whole.astype(jnp.float32) / 127.5 - 1.0, axis=-1, norm="ortho")
    return jnp.where(jnp.abs(spectra) < _SILENT, 0.0, spectra)


def polar_states(spectra_BNF: jax.Array, rho_F: jax.Array) -> jax.Array:
    """States after each piece: averaged magnitudes, with the phase of the newest piece in which the bin was heard."""

    def heard_last(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(new == 0, old, new)

    def compose(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # m -> a m + b, applied one after the other.
        (a1, b1), (a2, b2) = first, second
        return a2 * a1, a2 * b1 + b2

    magnitude_BNF = jnp.abs(spectra_BNF)
    decay_BNF = jnp.broadcast_to(rho_F, magnitude_BNF.shape)
    _, average_BNF = jax.lax.associative_scan(compose, (decay_BNF, (1 - rho_F) * magnitude_BNF), axis=1)
    return average_BNF * _phase(jax.lax.associative_scan(heard_last, spectra_BNF, axis=1))


def aligned_states(spectra_BNF: jax.Array, rho_F: jax.Array, theta_F: jax.Array) -> jax.Array:
    """States after each piece: the old one, turned to the phase of the new spectrum and by theta, averaged with it."""
    keep_F = rho_F * jnp.exp(1j * theta_F)

    def advance(h_BF: jax.Array, spectrum_BF: jax.Array) -> tuple[jax.Array, jax.Array]:
        h_BF = next_aligned_state(h_BF, spectrum_BF, rho_F, keep_F)
        return h_BF, h_BF

    _, states_NBF = jax.lax.scan(advance, jnp.zeros_like(spectra_BNF[:, 0]), spectra_BNF.swapaxes(0, 1))
    return states_NBF.swapaxes(0, 1)


def next_aligned_state(h_BF: jax.Array, spectrum_BF: jax.Array, rho_F: jax.Array, keep_F: jax.Array) -> jax.Array:
    """One step of `aligned`, with keep = rho e^(i theta); a silent bin (spectrum 0) decays and turns by itself."""
    magnitude = safe_abs(spectrum_BF)
    turned = (keep_F * safe_abs(h_BF) + (1 - rho_F) * magnitude) * _phase(spectrum_BF)
    return jnp.where(magnitude == 0, keep_F * h_BF, turned)


def next_polar_state(h_BF: jax.Array, spectrum_BF: jax.Array, rho_F: jax.Array) -> jax.Array:
    """One step of `polar`; a silent bin (spectrum 0) keeps its phase."""
    phase = _phase(jnp.where(spectrum_BF == 0, h_BF, spectrum_BF))
    return (rho_F * safe_abs(h_BF) + (1 - rho_F) * safe_abs(spectrum_BF)) * phase


def safe_abs(z: jax.Array) -> jax.Array:
    """|z| with gradient 0 at 0, where that of the square root is infinite and of 0/0 is NaN."""
    square = z.real**2 + z.imag**2
    is_zero = square == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))


def _phase(z: jax.Array) -> jax.Array:
    """z/|z|, and 1 where z is 0."""
    magnitude = safe_abs(z)
    return jnp.where(magnitude == 0, 1.0, z / jnp.where(magnitude == 0, 1.0, magnitude))
