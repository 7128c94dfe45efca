"""The spectral memory: its recurrences against plain loops, what it reads when, and its gradients in silence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.model import build, spectral_memory
from tests.tiny import tiny

PIECE, PIECES = 16, 60
BINS = PIECE // 2 + 1

# All tests give them arrays of one shape each.
piece_spectra = jax.jit(spectral_memory.piece_spectra, static_argnums=1)
polar_states = jax.jit(spectral_memory.polar_states)
aligned_states = jax.jit(spectral_memory.aligned_states)


def text(pieces: int = PIECES, seed: int = 0) -> np.ndarray:
    """Random bytes with two silent stretches: constant pieces, at the start and in the middle, are DC alone."""
    data = np.random.default_rng(seed).integers(0, 256, (2, pieces * PIECE)).astype(np.uint8)
    data[:, :PIECE] = 97
    data[:, 5 * PIECE : 7 * PIECE] = 32
    return data


def rho_and_theta():
    rng = np.random.default_rng(1)
    return rng.uniform(0.5, 0.99, BINS).astype(np.float32), rng.uniform(-3, 3, BINS).astype(np.float32)


def numpy_spectra(data: np.ndarray) -> np.ndarray:
    pieces = data.reshape(len(data), -1, PIECE) / 127.5 - 1.0
    spectra = np.fft.rfft(pieces, axis=-1) / np.sqrt(PIECE)
    return np.where(np.abs(spectra) < 1e-4, 0, spectra)


def by_hand(spectra: np.ndarray, step) -> np.ndarray:
    states, h = [], np.zeros_like(spectra[:, 0])
    for n in range(spectra.shape[1]):
        h = step(h, spectra[:, n])
        states.append(h)
    return np.stack(states, axis=1)


def unit(z: np.ndarray) -> np.ndarray:
    return np.where(z == 0, 1, z / np.where(z == 0, 1, np.abs(z)))


def test_spectra_of_pieces_are_those_of_numpy_and_a_rest_is_dropped():
    data = text()
    longer = np.concatenate([data, data[:, :5]], axis=1)
    np.testing.assert_allclose(piece_spectra(longer, PIECE), numpy_spectra(data), atol=1e-5)


def test_constant_pieces_are_silent_but_for_dc():
    spectra = np.asarray(piece_spectra(np.full((2, PIECES * PIECE + 5), 97, np.uint8), PIECE))
    assert (spectra[..., 0] != 0).all() and (spectra[..., 1:] == 0).all()


def test_polar_equals_a_plain_loop():
    rho, _ = rho_and_theta()
    spectra = numpy_spectra(text())

    def step(h, f):
        return (rho * np.abs(h) + (1 - rho) * np.abs(f)) * unit(np.where(f == 0, h, f))

    found = polar_states(spectra.astype(np.complex64), rho)
    np.testing.assert_allclose(found, by_hand(spectra, step), atol=1e-5)


def test_aligned_equals_a_plain_loop():
    rho, theta = rho_and_theta()
    spectra, keep = numpy_spectra(text()), rho * np.exp(1j * theta)

    def step(h, f):
        return np.where(f == 0, keep * h, keep * np.abs(h) * unit(f) + (1 - rho) * f)

    found = aligned_states(spectra.astype(np.complex64), rho, theta)
    np.testing.assert_allclose(found, by_hand(spectra, step), atol=1e-5)


def test_without_rotation_the_two_kinds_are_one():
    rho, _ = rho_and_theta()
    spectra = numpy_spectra(text()).astype(np.complex64)
    polar = polar_states(spectra, rho)
    aligned = aligned_states(spectra, rho, np.zeros(BINS, np.float32))
    np.testing.assert_allclose(polar, aligned, atol=1e-5)


@pytest.mark.parametrize("kind", ("aligned", "polar"))
def test_states_never_outgrow_what_was_heard(kind):
    rho, theta = rho_and_theta()
    spectra = numpy_spectra(text()).astype(np.complex64)
    states = polar_states(spectra, rho) if kind == "polar" else aligned_states(spectra, rho, theta)
    heard = np.maximum.accumulate(np.abs(spectra), axis=1)
    assert (np.abs(states) <= heard + 1e-5).all()


def test_a_state_is_read_from_the_end_of_its_piece_on():
    np.testing.assert_array_equal(spectral_memory.pieces_done(9, 4), [0, 0, 0, 1, 1, 1, 1, 2, 2])


# A rest of 5 bytes is dropped.
TEXT = text(12)[:, : 11 * PIECE + 5]
TEXTS = {"silent stretches": TEXT, "silent from the first piece on": np.full_like(TEXT, 97), "zeros": 0 * TEXT}


@functools.cache
def gradient_function(kind: str):
    """Of the sum of squares of what a fresh memory reads, by its parameters."""
    config = tiny(model__memory=kind, model__memory_piece=PIECE).model

    @jax.jit
    def gradients(data):
        graph, params = nnx.split(spectral_memory.SpectralMemory(config, nnx.Rngs(0)))
        found = jax.grad(lambda params: jnp.sum(jnp.square(nnx.merge(graph, params)(data))))(params)
        return nnx.to_pure_dict(found)

    return lambda data: jax.device_get(gradients(data))


@pytest.mark.parametrize("kind", ("aligned", "polar"))
@pytest.mark.parametrize("data", TEXTS)
def test_gradients_are_finite_in_silence(kind, data):
    """Pieces that are constant, from the first one on, or the whole window."""
    found = gradient_function(kind)(TEXTS[data])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.abs(found["rho"]).max() > 0


def test_negative_control_a_bare_square_root_gives_nan(monkeypatch):
    monkeypatch.setattr(spectral_memory, "safe_abs", lambda z: jnp.sqrt(z.real**2 + z.imag**2))
    assert np.isnan(gradient_function.__wrapped__("aligned")(TEXT)["rho"]).any()


@pytest.mark.parametrize("kind,names", (("aligned", {"rho", "theta", "w_read"}), ("polar", {"rho", "w_read"})))
def test_every_parameter_of_a_memory_is_used(kind, names):
    assert set(build(tiny(model__memory=kind).model)[1]["memory"]) == names
    found = gradient_function(kind)(TEXT)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))
