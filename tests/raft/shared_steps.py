"""Fine-tuning steps and scorers that all runs of one process share, as `tests/shared_programs.py` has it for training.

They are pure functions of what they are filed under here, so that runs which differ in their data, their settings of
sampling or what happens to them trace and load the same program once.
"""

from collections.abc import Callable, Hashable
from typing import Any

from fftlm_jax.raft import engine, raft_parts, run_cycles

_programs: dict[Hashable, Any] = {}


def share(monkeypatch: Any) -> None:
    """Has runs of this process take steps, scorers of answers and abstract models from here."""
    step, make_answer_loss, build = engine.Engine._step, engine.make_answer_loss, engine.build

    def shared_step(self: engine.Engine, trained: str, steps: int) -> Any:
        config = self._config
        key = (config.model, config.optim, config.train.skip_nonfinite, self._mesh)
        key += (config.seed, self._lora, self._low_pass, trained, steps)
        return _once(("step", *key), lambda: step(self, trained, steps))

    def shared_answer_loss(graph: Any, low_pass: Any, batch_size: int) -> Any:
        return _once(("scorer", graph, low_pass, batch_size), lambda: make_answer_loss(graph, low_pass, batch_size))

    def shared_build(config: Any) -> Any:
        return _once(("model", config), lambda: build(config))

    monkeypatch.setattr(engine.Engine, "_step", shared_step)
    monkeypatch.setattr(engine, "make_answer_loss", shared_answer_loss)
    for module in (engine, run_cycles, raft_parts):
        monkeypatch.setattr(module, "build", shared_build)


def _once(key: Hashable, make: Callable[[], Any]) -> Any:
    if key not in _programs:
        _programs[key] = make()
    return _programs[key]
