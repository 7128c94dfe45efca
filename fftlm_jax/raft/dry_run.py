"""`--dry_run` of a fine-tuning run: what it would do, without writing anything."""

from collections.abc import Mapping
from typing import Any

import jax

from fftlm_jax.config import to_dict
from fftlm_jax.model import build
from fftlm_jax.model.lora import init_adapters
from fftlm_jax.raft import setup
from fftlm_jax.raft.general_text import GeneralText
from fftlm_jax.raft.origin import origin_of
from fftlm_jax.training.fine_tune import steps_per_epoch
from fftlm_jax.training.setup import config_of


def dry_run(values: Mapping[str, Any]) -> None:
    """Validates a config and its task, and prints what it found.

    Raises:
        RunError: whatever would stop a real run before its first step.
    """
    config = setup.with_yaml_text(config_of(values))
    raft = config.raft
    task, pools = setup.task_of(config)
    schedule, lora = setup.schedule_of(config), setup.lora_of(config)
    abstract = build(config.model)[1]
    GeneralText(config, origin_of(config, None))
    print(f"raft: {to_dict(config)['raft']}")
    for name, pool in pools._asdict().items():
        shown = ", ".join(repr(problem.prompt + problem.answer)[1:] for problem in pool[:3])
        print(f"{name}: {len(pool)} problems, such as {shown}")
    steps = raft.sft_epochs * steps_per_epoch(len(pools.sft), raft.batch_size)
    print(f"supervised: {steps} steps of up to {raft.batch_size} answers on {_size(abstract):,} parameters")
    if "lora" in (raft.trained, raft.sft_trained):
        adapters = jax.eval_shape(lambda params: init_adapters(params, lora, config.seed), abstract)
        print(f"adapters: {_size(adapters):,} parameters at {', '.join(adapters)}")
    print(f"a cycle: {len(pools.raft) * raft.samples:,} samples of up to {task.longest_answer} bytes")
    print(f"learning rates: {', '.join(f'{schedule(n):.3g}' for n in range(1, raft.cycles + 1))}")
    print("nothing was written")


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
