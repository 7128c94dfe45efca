"""The optimizer of a run, built from its config, and its radial statistics as the metrics keep them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from fftlm_jax.config.schema import Config, OptimConfig
from fftlm_jax.config.traits import OPTIMIZERS, OptimizerTraits
from fftlm_jax.model.parameters import DECAYED_GROUPS, MUON_GROUPS, group_of, group_sizes, label_params
from fftlm_jax.optim import (
    RadialStats,
    scale_by_sawtooth,
    scale_by_scheduled_learning_rate,
    stage_cooldown_schedule,
    stages_in_steps,
)
from fftlm_jax.optim.brake import radial_brake
from fftlm_jax.optim.learning_rate import momentum_schedule, stage_schedule
from fftlm_jax.optim.leaves import PerPath
from fftlm_jax.optim.muon import scale_by_muon
from fftlm_jax.optim.muon_links import add_cautious_decayed_weights
from fftlm_jax.optim.radial import AdaptiveAlpha
from fftlm_jax.parallel import StackShardings, on_stacks

_LOW_MOMENTUM = 0.85  # Where the momentum begins and ends, as in the source document's runs.


def build_optimizer(
    config: OptimConfig,
    learning_rate: optax.GradientTransformation,
    total_steps: int,
    batch_multiples: tuple[int, ...] = (1,),
    stacks: StackShardings | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, AdamW or Muon with decoupled decay on matrices, and a learning rate.

    Args:
        config: the optimizer's settings.
        learning_rate: such as `scale_by_sawtooth`, whose events are then keyword arguments of `update`.
        total_steps: updates of the whole training, for what happens at a fraction of it.
        batch_multiples: sizes of the batch in equal stages of training, in multiples of the first's. `grad_units`
            grow with them, as the gradient of a summed loss does.
        stacks: shardings of Muon's stacks of matrices, see `orthogonalize`.
    """
    before, after = OPTIMIZER_LINKS[config.name].links(config, total_steps, batch_multiples, stacks)
    return optax.chain(optax.clip_by_global_norm(config.clip), *before, learning_rate, *after)


Links = tuple[list[optax.GradientTransformation], list[optax.GradientTransformation]]


class OptimizerLinks(NamedTuple):
    """What an optimizer adds to clipping and learning rate.

    `links(config, total_steps, batch_multiples, stacks)`, arguments as of `build_optimizer`, gives the links
    before and after the learning rate; `half_of(group)` the name of the half that updates a group of parameters.
    """

    links: Callable[..., Links]
    half_of: Callable[[str], str]


def register_optimizer(name: str, links: OptimizerLinks, traits: OptimizerTraits) -> None:
    """Makes an optimizer of one's own a value of `optim.name`; to be called before a config that names it is read.

    Raises:
        ValueError: if there is one of this name.
    """
    if name in OPTIMIZER_LINKS:
        raise ValueError(f"there is an optimizer {name!r} already")
    OPTIMIZER_LINKS[name], OPTIMIZERS[name] = links, traits


def routing_words(params: Any, optimizer: str) -> str:
    """Which groups of parameters go to which half of the optimizer, with their sizes."""
    half_of, halves = OPTIMIZER_LINKS[optimizer].half_of, {}
    for group, size in group_sizes(params).items():
        halves.setdefault(half_of(group), []).append(f"{group} ({size:,})")
    return "; ".join(f"{half} for {', '.join(halves[half])}" for half in sorted(halves, reverse=True))


def _adamw_links(config: OptimConfig, *unused: Any) -> Links:
    del unused
    return [_adamw(config)], []


def _muon_links(
    config: OptimConfig,
    total_steps: int,
    batch_multiples: tuple[int, ...],
    stacks: StackShardings | None,
) -> Links:
    muon = _muon(config, total_steps, batch_multiples, stacks)
    halves = optax.partition({"muon": muon, "adamw": _adamw_beside_muon(config)}, _halves)
    return [halves], [optax.masked(radial_brake(config.brake), _is_muon)] if config.brake < 1 else []


def _half_beside_muon(group: str) -> str:
    return "muon" if group in MUON_GROUPS else "adamw"


OPTIMIZER_LINKS = {
    "adamw": OptimizerLinks(_adamw_links, lambda group: "adamw"),
    "muon": OptimizerLinks(_muon_links, _half_beside_muon),
}


def _adamw(config: OptimConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=_is_decayed),
    )


def _adamw_beside_muon(config: OptimConfig) -> optax.GradientTransformation:
    return optax.chain(_adamw(config), optax.scale(config.adam_scale))


def _muon(
    config: OptimConfig,
    total_steps: int,
    batch_multiples: tuple[int, ...],
    stacks: StackShardings | None,
) -> optax.GradientTransformationExtraArgs:
    decay = add_cautious_decayed_weights if config.cautious else optax.add_decayed_weights
    direction = scale_by_muon(
        _momentum(config, total_steps),
        method=config.polar,
        steps=config.polar_steps,
        dtype=None if config.polar_dtype == "auto" else config.polar_dtype,
        alpha=_alpha(config, total_steps),
        mode=config.spectral_mode,
        normalize=config.spectral_normalize,
        grad_units=_grad_units(config.grad_units, batch_multiples, total_steps),
        adaptive=None if config.spectral_adaptive == "none" else AdaptiveAlpha(config.spectral_adaptive),
        neuron_beta2=config.neuron_beta2 or None,
        shape=config.shape,
        stack_sharding=stacks and stacks.dealt,
        leaf_sharding=stacks and stacks.held,
    )
    return optax.chain(direction, decay(config.weight_decay))


def _grad_units(units: float, batch_multiples: tuple[int, ...], total_steps: int) -> optax.ScalarOrSchedule:
    if len(set(batch_multiples)) == 1:
        return units * batch_multiples[0]
    return stage_schedule([units * multiple for multiple in batch_multiples], total_steps)


def _momentum(config: OptimConfig, total_steps: int) -> optax.ScalarOrSchedule:
    if not config.momentum_warmup and not config.momentum_cooldown:
        return config.momentum
    return momentum_schedule(
        total_steps,
        low=min(_LOW_MOMENTUM, config.momentum),
        high=config.momentum,
        warmup=config.momentum_warmup,
        cooldown=config.momentum_cooldown,
    )


def _alpha(config: OptimConfig, total_steps: int) -> Any:
    """Alpha as `with_spectral` takes it: a number or a schedule, or those by group."""
    if not isinstance(config.spectral_lr, tuple):
        return _within_span(config.spectral_lr, config.spectral_span, total_steps)
    by_group = {group: _within_span(value, config.spectral_span, total_steps) for group, value in config.spectral_lr}
    return PerPath(lambda path: by_group.get(group_of(path), 0.0))


def _within_span(alpha: float, span: tuple[float, float], total_steps: int) -> optax.ScalarOrSchedule:
    """`alpha` between two fractions of training, 0 outside; a plain number where that is always."""
    if tuple(span) == (0.0, 1.0):
        return alpha
    first, after = (round(fraction * total_steps) for fraction in span)
    return optax.join_schedules([optax.constant_schedule(a) for a in (0.0, alpha, 0.0)], [first, after])


def _is_muon(params: Any) -> Any:
    return jax.tree.map(lambda group: group in MUON_GROUPS, label_params(params))


def _halves(params: Any) -> Any:
    return jax.tree.map(_half_beside_muon, label_params(params))


def _is_decayed(params: Any) -> Any:
    # Inside a partition the other half is masked, and stays so.
    return jax.tree.map(lambda group: group in DECAYED_GROUPS, label_params(params))


# Names in the record: rho and its scale-free form, and the lengths of the two parts of the gradient.
_FIELDS = {"rho": "ratio", "cosine": "cosine", "parallel": "parallel_norm", "perpendicular": "perpendicular_norm"}
_DIGITS = 4  # Significant ones.


def radial_record(radial: Mapping[str, RadialStats]) -> dict[str, Any]:
    """JSON-ready numbers.

    Returns:
        `rho`, `cosine`, `parallel` and `perpendicular`, each {path: one number per layer}; and `groups`, for every
        group the mean over its matrices of rho (`rho`), of its absolute value (`abs_rho`), and the same of the cosine.
        Signed means cancel where layers disagree; absolute ones do not.
    """
    record: dict[str, Any] = {
        name: {path: [_rounded(x) for x in np.ravel(getattr(stats, field))] for path, stats in radial.items()}
        for name, field in _FIELDS.items()
    }
    members: dict[str, list[str]] = {}
    for path in radial:
        members.setdefault(group_of(path) or path, []).append(path)
    record["groups"] = {
        group: {
            f"{prefix}{name}": _rounded(np.mean([function(getattr(radial[path], field)).mean() for path in paths]))
            for name, field in (("rho", "ratio"), ("cosine", "cosine"))
            for prefix, function in (("", np.asarray), ("abs_", np.abs))
        }
        for group, paths in members.items()
    }
    return record


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{_DIGITS}g}")


def build_optimizer_of(config: Config, mesh: Mesh | None = None) -> optax.GradientTransformationExtraArgs:
    """The optimizer with the run's own learning rate."""
    stages, stacks = config.train.batch_stages, on_stacks(mesh, config.mesh.fsdp_min_size)
    return build_optimizer(config.optim, _learning_rate(config), config.total_steps, stages, stacks)


def _learning_rate(config: Config) -> optax.GradientTransformationExtraArgs:
    lr, train = config.lr, config.train
    if lr.schedule == "sawtooth":
        return scale_by_sawtooth(stages_in_steps(lr.stages, train.steps_per_epoch, train.epochs), lr.base)
    multiplier = stage_cooldown_schedule(config.total_steps, lr.multipliers, cooldown_fraction=lr.cooldown)
    return scale_by_scheduled_learning_rate(lambda count: lr.base * multiplier(count))
