"""Made-up results of cycles for the tests of the advisor and the report: healthy unless told otherwise."""

from fftlm_jax.raft.cycle_lr import Knobs
from fftlm_jax.raft.cycle_result import CycleResult, HeldOutResult, SampleResult, TrainResult

KNOBS = Knobs(
    "constant", 2e-3, 0.85, temperature=1.0, anchor=0.0, epochs=3, warmup=0, max_epochs=100, lr_source=""
)  # fmt: skip
FALLING = (0.5, 0.47, 0.45, 0.42, 0.40, 0.39, 0.37, 0.36, 0.35, 0.34, 0.33, 0.32)
LEVEL = (0.5,) * 12


def cycle(number, rate, *, parent=None, multi_answer=False, no_training=False, **changes):
    """A cycle with this held-out rate of 1000 prompts; `changes` set fields in all of its parts that have them."""
    parts = {
        HeldOutResult: {
            "rate": rate,
            "se": (rate * (1 - rate) / 1000) ** 0.5,
            "greedy_rate": rate,
            "sampled_rate": 0.9 * rate,
            "pass_at": {"1": 0.9 * rate, "4": min(1.0, 0.9 * rate + 0.05)},
            "gold_loss": 1.0,
            "unique_valid": 0.9,
            "general_bpb": None,
        },
        SampleResult: {
            "prompts": 1500,
            "samples": 12000,
            "rate": 0.4,
            "se": 0.01,
            "pass_at": {"1": 0.4, "8": 0.8},
            "never": 300,
            "always": 100,
            "kept": 1800,
            "right_among_kept": 1.0,
            "coverage": 0.6,
            "unique_valid": 0.9,
            "distinct_3grams": 0.2,
            "longest_repeat": 0.1,
            "truncated": 0.0,
            "mean_length": 4.0,
        },
        TrainResult: {
            "steps": len(changes.get("losses", FALLING)),
            "lr": 2e-3,
            "lr_peak": changes.get("lr", 2e-3),
            "lr_area": 0.024,
            "losses": FALLING,
            "grad_norm": {"0.1": 0.3, "0.5": 0.4, "0.9": 0.6},
            "clip": 1.0,
            "clip_fraction": 0.1,
            "update_ratio": 1e-3,
        },
    }
    for name, value in changes.items():
        named = [values for values in parts.values() if name in values]
        assert named, name
        for values in named:
            values[name] = value
    held_out, samples, train = (part(**values) for part, values in parts.items())
    if number == 0:
        return CycleResult(0, 0, held_out, multi_answer=multi_answer)
    parent = number - 1 if parent is None else parent
    return CycleResult(number, parent, held_out, samples, None if no_training else train, multi_answer)


def history(rates, *, multi_answer=False, each=(), last=None):
    """Cycles with these held-out rates; `each` are changes by cycle, cycle 0 first, `last` those of the newest."""
    changes = [dict(c) for c in each] + [{}] * (len(rates) - len(each))
    changes[-1] = {**changes[-1], **(last or {})}
    return [cycle(n, rate, multi_answer=multi_answer, **c) for n, (rate, c) in enumerate(zip(rates, changes))]
