"""The spectral memory: its recurrences against plain loops, what it reads when, and its gradients in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.model import init_params, memory
from tests.tiny import tiny

PIECE = 16
BINS = PIECE // 2 + 1


def text(pieces: int = 12, seed: int = 0) -> np.ndarray:
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
    np.testing.assert_allclose(memory.piece_spectra(jnp.asarray(data), PIECE), numpy_spectra(data), atol=1e-5)
    longer = np.concatenate([data, data[:, :5]], axis=1)
    assert memory.piece_spectra(jnp.asarray(longer), PIECE).shape == (2, 12, BINS)


def test_constant_pieces_are_silent_but_for_dc():
    spectra = np.asarray(memory.piece_spectra(jnp.full((1, PIECE), 97, jnp.uint8), PIECE))[0, 0]
    assert spectra[0] != 0 and (spectra[1:] == 0).all()


def test_polar_equals_a_plain_loop():
    rho, _ = rho_and_theta()
    spectra = numpy_spectra(text())

    def step(h, f):
        return (rho * np.abs(h) + (1 - rho) * np.abs(f)) * unit(np.where(f == 0, h, f))

    found = memory.polar_states(jnp.asarray(spectra, jnp.complex64), jnp.asarray(rho))
    np.testing.assert_allclose(found, by_hand(spectra, step), atol=1e-5)


def test_aligned_equals_a_plain_loop():
    rho, theta = rho_and_theta()
    spectra, keep = numpy_spectra(text()), rho * np.exp(1j * theta)

    def step(h, f):
        return np.where(f == 0, keep * h, keep * np.abs(h) * unit(f) + (1 - rho) * f)

    found = memory.aligned_states(jnp.asarray(spectra, jnp.complex64), jnp.asarray(rho), jnp.asarray(theta))
    np.testing.assert_allclose(found, by_hand(spectra, step), atol=1e-5)


def test_without_rotation_the_two_kinds_are_one():
    rho, _ = rho_and_theta()
    spectra = jnp.asarray(numpy_spectra(text()), jnp.complex64)
    polar = memory.polar_states(spectra, jnp.asarray(rho))
    aligned = memory.aligned_states(spectra, jnp.asarray(rho), jnp.zeros(BINS))
    np.testing.assert_allclose(polar, aligned, atol=1e-5)


@pytest.mark.parametrize("kind", ("aligned", "polar"))
def test_states_never_outgrow_what_was_heard(kind):
    rho, theta = (jnp.asarray(x) for x in rho_and_theta())
    spectra = jnp.asarray(numpy_spectra(text(200)), jnp.complex64)
    states = memory.polar_states(spectra, rho) if kind == "polar" else memory.aligned_states(spectra, rho, theta)
    heard = np.maximum.accumulate(np.abs(spectra), axis=1)
    assert (np.abs(states) <= heard + 1e-5).all()


def test_a_state_is_read_from_the_end_of_its_piece_on():
    np.testing.assert_array_equal(memory.pieces_done(9, 4), [0, 0, 0, 1, 1, 1, 1, 2, 2])


def gradients(kind: str, data: np.ndarray):
    config = tiny(model__memory=kind, model__memory_piece=PIECE).model
    graph, params = nnx.split(memory.SpectralMemory(config, nnx.Rngs(0)))
    loss = lambda params: jnp.sum(jnp.square(nnx.merge(graph, params)(jnp.asarray(data))))
    return nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))


@pytest.mark.parametrize("kind", ("aligned", "polar"))
@pytest.mark.parametrize("data", (text(), np.full((1, 64), 97, np.uint8), np.zeros((1, 20), np.uint8)))
def test_gradients_are_finite_in_silence(kind, data):
    """Pieces that are constant, from the first one on, or the whole window."""
    found = gradients(kind, data)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.abs(found["rho"]).max() > 0


def test_negative_control_a_bare_square_root_gives_nan(monkeypatch):
    monkeypatch.setattr(memory, "safe_abs", lambda z: jnp.sqrt(z.real**2 + z.imag**2))
    assert np.isnan(gradients("aligned", text())["rho"]).any()


@pytest.mark.parametrize("kind,names", (("aligned", {"rho", "theta", "w_read"}), ("polar", {"rho", "w_read"})))
def test_every_parameter_of_a_memory_is_used(kind, names):
    assert set(init_params(tiny(model__memory=kind).model, 0)["memory"]) == names
    found = gradients(kind, text())
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))
