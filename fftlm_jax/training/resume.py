"""What a resumed run may change. Everything else is refused, field by field."""

from typing import Any

from fftlm_jax.config import Config, differences, to_dict
from fftlm_jax.errors import CheckpointError
from fftlm_jax.untrusted import printable, shown

# How a run is watched, not what it computes. Where a corpus lies is free too: its fingerprint is what must agree.
_FREE = (
    *("eval.every", "eval.before_raise", "eval.batch_size", "checkpoint.", "sample.", "profile.", "resume."),
    *("train.log_every", "data.source", "data.path", "compile_cache", "model.remat", "mesh.", "distributed."),
)
# A differing one of these no longer fits the saved arrays, or the bins that cutoffs are counted in.
_NEVER = (
    *("task", "raft.task", "raft.size", "raft.reversed_answer", "raft.trained", "raft.lora_", "raft.start"),
    *("raft.sft_examples", "raft.prompts", "raft.held_out", "raft.first_level"),  # They deal the pools.
    *("model.", "objective.backbone", "init.", "lr.schedule", "optim.name", "optim.ema_decay", "optim.cautious"),
    *("optim.neuron_beta2", "optim.spectral_normalize", "optim.spectral_adaptive"),
)
_NEVER_EXCEPT = ("model.conv_method", "model.dropout")


def changes_of(saved: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Differences from a saved config that change what a run computes, as dotted key -> (old, new)."""
    return {name: pair for name, pair in differences(saved, to_dict(config)).items() if not name.startswith(_FREE)}


def refuse_changes(saved: dict[str, Any], config: Config) -> None:
    """Refuses every change of a run's config that `resume.allow` does not permit (by key or by section).

    Raises:
        CheckpointError: with every such difference, one a line.
    """
    changed = changes_of(saved, config)
    refused = [name for name in changed if not _is_allowed(name, config.resume.allow) or _is_fixed(name)]
    if not refused:
        return
    lines = [f"  {printable(name)}: {shown(changed[name][0])} -> {shown(changed[name][1])}" for name in refused]
    on_request = [name for name in refused if not _is_fixed(name)]
    fix = "Use the run's own values, or another --workdir"
    if len(on_request) == len(refused):
        fix += f', or permit the change with --config.resume.allow="{",".join(on_request)}"'
    raise CheckpointError("the run in this folder was started with another config:\n" + "\n".join([*lines, f"{fix}."]))


def require_same_corpus(saved: str, found: str, config: Config) -> None:
    """Compares corpus fingerprints.

    Raises:
        CheckpointError: if they differ and `resume.allow` does not name `data`.
    """
    if saved != found and not _is_allowed("data", config.resume.allow):
        raise CheckpointError(
            f"data: the corpus differs from the run's (fingerprint {saved[:12]} -> {found[:12]}). Bring the old bytes "
            "back, or permit the change with --config.resume.allow=data."
        )


def _is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def _is_fixed(name: str) -> bool:
    return name.startswith(_NEVER) and name not in _NEVER_EXCEPT
