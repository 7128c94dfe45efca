"""The coefficients are the published ones, and each really is the best odd quintic for its interval."""

import numpy as np
import pytest

from fftlm_jax.optim import polar_express_coefficients

# github.com/KellerJordan/modded-nanogpt, and Algorithm 1 of arXiv 2505.16932 (before its division by 1.01).
SPEED_RUN = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
PAPER = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


def compose(coefficients, x):
    for a, b, c in coefficients:
        x = a * x + b * x**3 + c * x**5
    return x


def test_published_digits():
    np.testing.assert_allclose(polar_express_coefficients(5), SPEED_RUN, rtol=1e-12)
    ours = polar_express_coefficients(8, cushion=0.02407327424182761, safety=1)
    np.testing.assert_allclose(ours, PAPER, rtol=1e-8)
    np.testing.assert_allclose(ours[:6], PAPER[:6], rtol=1e-12)


def test_more_steps_come_closer_to_one():
    x = np.geomspace(1e-3, 1, 4001)
    errors = [np.max(np.abs(compose(polar_express_coefficients(n, safety=1), x) - 1)) for n in range(3, 9)]
    assert all(later < earlier for earlier, later in zip(errors[:-2], errors[1:])) and errors[-1] < 1e-6


def test_one_step_is_the_minimax_quintic():
    """Its error takes its largest value four times with alternating signs, which characterises the best one."""
    x = np.linspace(0.3, 1, 100_001)
    error = compose(polar_express_coefficients(1, lower=0.3), x) - 1
    ends = [0, *(np.flatnonzero(np.diff(np.sign(np.diff(error)))) + 1), len(x) - 1]
    assert len(ends) == 4
    np.testing.assert_allclose(error[ends], np.max(np.abs(error)) * np.array([-1, 1, -1, 1]), rtol=1e-6)


def test_no_step_is_an_error():
    with pytest.raises(ValueError, match="steps is 0"):
        polar_express_coefficients(0)
