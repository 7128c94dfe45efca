"""Programs are written for the platform that is asked for, whatever the host is."""

import ast

import jax
import pytest

from fftlm_jax.config.reading import read_config
from fftlm_jax.model import build
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.plan.traces import traces_of
from fftlm_jax.runtime.platform import traced_platform, tracing_for
from fftlm_jax.spectral import causal_convolve
from fftlm_jax.training.compiler import StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.run_parts import trace_step
from tests.raft.raft_run import raft_values
from tests.tiny import ROOT, tiny, tiny_values

PACKAGE = ROOT / "fftlm_jax"


def step_text(platform: str, **overrides) -> str:
    config = tiny(model__n_layers=2, **overrides)
    graph, _ = build(config.model)
    variant = StepVariant(low_pass_at(config, 5), config.train.accum_steps)
    traced = trace_step(config, graph, build_optimizer_of(config), variant)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    "overrides", ({}, {"optim__name": "muon"}, {"model__memory": "polar", "model__memory_piece": 4})
)
def test_a_step_for_a_tpu_is_the_same_on_every_host(monkeypatch, overrides):
    """Lowered on this CPU for a TPU, and as on a host whose own platform is one."""
    with tracing_for("tpu"):
        asked_for = step_text("tpu", **overrides)
    here = step_text("tpu", **overrides)
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    on_such_a_host = step_text("tpu", **overrides)
    jax.clear_caches()
    assert asked_for == on_such_a_host
    assert asked_for != here, "or the platform decides nothing"


def test_what_was_traced_for_one_platform_is_not_taken_for_another():
    """The context is part of the key of JAX's caches."""
    convolve = jax.jit(causal_convolve)
    u, kernel = jax.ShapeDtypeStruct((1, 64, 2), float), jax.ShapeDtypeStruct((2, 48), float)
    here = str(convolve.trace(u, kernel).jaxpr)
    with tracing_for("gpu"):
        assert traced_platform() == "gpu"
        there = str(convolve.trace(u, kernel).jaxpr)
    assert traced_platform() == "cpu" and str(convolve.trace(u, kernel).jaxpr) == here
    assert " fft[" in here and " fft[" not in there, "48 taps: by FFT on a CPU, by products on an accelerator"


def test_nothing_else_asks_the_host_while_tracing():
    askers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "default_backend"
    }
    # Where a run's programs are run, not traced: the first steps wait for compiles, and small programs are rehearsed.
    assert askers == {"runtime/platform.py", "training/loop.py", "training/run_parts.py"}


@pytest.mark.parametrize("values", (tiny_values(model__memory="polar", model__memory_piece=4), raft_values()))
def test_a_precision_holds_for_every_product_of_every_program(values):
    """In training, its backward pass, evaluation and decoding: no product is left at the platform's default."""

    def products(precision: str) -> list[str]:
        values.model.precision = precision
        config = read_config(values)
        found = []
        for program in traces_of(config, None, jax.devices()[0], False):
            with tracing_for("tpu"):
                text = program.trace().lower(lowering_platforms=("tpu",)).as_text()
            found += [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        return found

    asked_for, usual = products("highest"), products("default")
    assert len(asked_for) == len(usual) > 20
    assert [line for line in asked_for if "precision = [HIGHEST, HIGHEST]" not in line] == []
    assert not all("HIGHEST" in line for line in usual)
