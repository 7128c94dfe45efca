"""`--dry_run`: what a config would do and cost on the machine at hand, without writing anything."""

import time
from collections.abc import Mapping
from typing import Any

import jax

from fftlm_jax.config.reading import to_dict
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.data.corpus import load_run_corpus
from fftlm_jax.doctor.examine import words
from fftlm_jax.doctor.rules_config import advice
from fftlm_jax.model import build
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.model.parameters import label_params
from fftlm_jax.optim.leaves import path_string
from fftlm_jax.plan.arithmetic import flops_of
from fftlm_jax.training import run_parts
from fftlm_jax.training.batches import batch_stages
from fftlm_jax.training.compiler import StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.run_parts import trace_step


def dry_run(values: Mapping[str, Any]) -> None:
    """Validates a config and its data, compiles the first step, and prints what it found.

    Raises:
        RunError: whatever would stop a real run before its first step.
    """
    config = run_parts.config_of(values)
    corpus = load_run_corpus(config)
    for section, keys in to_dict(config).items():
        print(f"{section}: {keys}")
    for finding in advice(config):
        print(f"\n{words(finding)}")
    print("\n".join(["", corpus.description, *(f"WARNING: {warning}" for warning in corpus.warnings)]))
    graph, params = build(config.model)
    print(_parameter_table(params))
    mesh = run_parts.build_mesh(config)
    tx = build_optimizer_of(config, mesh)
    cutoff, micro_batches = build_controller(config).cutoff, batch_stages(config).largest
    traced = trace_step(config, graph, tx, StepVariant(low_pass_at(config, cutoff), micro_batches), mesh)
    start = time.perf_counter()
    memory = traced.lower().compile().memory_analysis()
    seconds = time.perf_counter() - start
    t = config.train
    devices = 1 if mesh is None else mesh.size
    step_bytes = micro_batches * t.batch_size * config.model.seq_len
    flops = flops_of(traced.jaxpr)
    print(
        f"\none step at cutoff {cutoff}: {step_bytes:,} bytes of text, {flops / 1e9:,.1f} GFLOP of matrix products "
        f"({config.model.dtype}) and transforms, micro-batches: {micro_batches}"
    )
    if devices > 1:
        print(f"on {devices} devices: {dict(mesh.shape)}; memory is that of each")
    if memory is not None:
        print(
            f"memory: {memory.argument_size_in_bytes / 2**20:,.0f} MiB of state and data (updated in place), "
            f"{memory.temp_size_in_bytes / 2**20:,.0f} MiB of temporaries"
        )
    print(f"compiled in {seconds:.1f}s for {jax.devices()[0].device_kind}; nothing was written")


def _parameter_table(params: Any) -> str:
    groups = jax.tree.leaves(label_params(params))
    rows = [
        (path_string(path), "x".join(map(str, leaf.shape)), leaf.size, group)
        for (path, leaf), group in zip(jax.tree_util.tree_leaves_with_path(params), groups, strict=True)
    ]
    rows.append(("total", "", sum(size for _, _, size, _ in rows), ""))
    width = max(len(name) for name, *_ in rows)
    return "\n".join(f"{name:{width}}  {shape:>16}  {size:>12,}  {group}" for name, shape, size, group in rows)
