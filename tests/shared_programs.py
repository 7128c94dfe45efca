"""Compiled training steps and scorers that all runs of one process share: the suite trains hundreds of tiny runs.

Both are pure functions of a part of the config. Runs that differ in how they are watched (evaluations, saves, samples,
data), and runs that go on where another stopped, then trace, compile and load the same program once. A process has its
own: children of the suite share nothing.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax

from fftlm_jax.config.schema import Config
from fftlm_jax.evaluation import held_out_bpb
from fftlm_jax.training import run_parts

_programs: dict[Hashable, Any] = {}


def share(monkeypatch: Any) -> None:
    """Has runs of this process take steps and scorers from here; programs of several devices are made anew."""
    make_step, make_evaluate = run_parts.make_train_step, held_out_bpb.make_evaluate

    def shared_step(config: Config, graph: Any, tx: Any, low_pass: Any, shardings: Any = None) -> Any:
        if shardings is not None:
            return make_step(config, graph, tx, low_pass, shardings)
        train = dataclasses.replace(config.train, log_every=1)
        key = ("step", *_of_model(config), config.optim, config.lr, train, low_pass)
        return _once(key, lambda: _SharedJit(make_step(config, graph, tx, low_pass)))

    def shared_evaluate(config: Config, graph: Any, low_pass: Any, mesh: Any = None) -> Any:
        if mesh is not None:
            return make_evaluate(config, graph, low_pass, mesh)
        return _once(("scorer", *_of_model(config), low_pass), lambda: make_evaluate(config, graph, low_pass))

    monkeypatch.setattr(run_parts, "make_train_step", shared_step)
    monkeypatch.setattr(held_out_bpb, "make_evaluate", shared_evaluate)


def forget() -> None:
    """Lets go of all of them."""
    _programs.clear()


class _SharedJit:
    """A jitted function that is lowered and compiled once for arguments of the same shapes."""

    def __init__(self, jitted: Any) -> None:
        self._jitted, self._lowered = jitted, {}

    def trace(self, *arguments: Any) -> "_SharedTraced":
        return _SharedTraced(self, self._jitted, arguments)

    def lower(self, *arguments: Any) -> "_SharedLowered":
        leaves, structure = jax.tree.flatten(arguments)
        key = (structure, tuple((jax.numpy.shape(leaf), jax.numpy.result_type(leaf)) for leaf in leaves))
        if key not in self._lowered:
            self._lowered[key] = _SharedLowered(self._jitted.lower(*arguments))
        return self._lowered[key]


class _SharedTraced:
    """A trace that is lowered for this machine once, and for others anew."""

    def __init__(self, shared: _SharedJit, jitted: Any, arguments: tuple) -> None:
        self._shared, self._jitted, self._arguments = shared, jitted, arguments

    @property
    def jaxpr(self) -> Any:
        return self._jitted.trace(*self._arguments).jaxpr

    def lower(self, **options: Any) -> Any:
        if options:
            return self._jitted.trace(*self._arguments).lower(**options)
        return self._shared.lower(*self._arguments)


class _SharedLowered:
    def __init__(self, lowered: jax.stages.Lowered) -> None:
        self._lowered, self._compiled = lowered, None
        self.args_info = lowered.args_info

    def compile(self) -> jax.stages.Compiled:
        self._compiled = self._compiled or self._lowered.compile()
        return self._compiled


def _of_model(config: Config) -> tuple[Hashable, ...]:
    return config.seed, config.model, config.objective


def _once(key: Hashable, make: Callable[[], Any]) -> Any:
    if key not in _programs:
        _programs[key] = make()
    return _programs[key]
