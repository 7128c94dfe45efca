"""Settings of JAX that the surrounding program or environment makes, as far as they change what a run computes."""

import os
from typing import Any

import jax

from fftlm_jax.runtime.errors import UsageError

# Those that runs do not work under, with the value that they need.
_REQUIRED = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_debug_infs": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    # Arrays of the host, such as batches and seeds, are handed to JAX as they are.
    "jax_transfer_guard": "allow",
    "jax_transfer_guard_host_to_device": "allow",
    "jax_transfer_guard_device_to_host": "allow",
    "jax_transfer_guard_device_to_device": "allow",
}
_HARMLESS = ("warn", "log", "log_explicit", None)
# Those that are recorded, since other values give other numbers.
_RECORDED = {
    "matmul_precision": "jax_default_matmul_precision",
    "threefry_partitionable": "jax_threefry_partitionable",
    "random_seed_offset": "jax_random_seed_offset",
}


def require_supported_settings() -> None:
    """Refuses settings under which runs end in a traceback or in states that no other process can read.

    Raises:
        UsageError: naming the first such setting.
    """
    for name, required in _REQUIRED.items():
        found = getattr(jax.config, name)
        found = getattr(found, "value", found)  # Some are enumerations.
        if found != required and found not in _HARMLESS:
            raise UsageError(
                f"{name.upper()}: is {found!r}, and runs work with {required!r} alone; unset the environment variable "
                f"or call jax.config.update({name!r}, {required!r})."
            )


def require_devices() -> None:
    """Refuses platforms that this machine lacks. Several processes must have joined before, since it starts devices.

    Raises:
        UsageError: naming the environment variable.
    """
    try:
        jax.devices()
    except Exception as error:  # Of several kinds; where jax lacks a plugin, an assertion fails and says nothing.
        settings = {"JAX_PLATFORMS": jax.config.jax_platforms, "JAX_PLATFORM_NAME": os.environ.get("JAX_PLATFORM_NAME")}
        asked = " ".join(f"{name}={value}" for name, value in settings.items() if value)
        reason = str(error).partition(" (set ")[0].rstrip(".") or "no plugin of jax provides it"
        raise UsageError(
            f"{asked or 'JAX_PLATFORMS'}: jax finds no such device ({reason}); unset the environment variable, or name "
            "a platform that this machine has, such as cpu."
        ) from None


def recorded_settings() -> dict[str, Any]:
    """Settings that change the numbers of a run, by name, as `env.json` keeps them."""
    return {name: getattr(jax.config, setting) for name, setting in _RECORDED.items()}


def random_key(seed: int) -> jax.Array:
    """The key of a seed (plus `jax_random_seed_offset`), of one implementation whatever JAX's default is.

    Of others, such as `rbg`, the numbers of a row depend on the rows beside it.
    """
    return jax.random.key(seed, impl="threefry2x32")
