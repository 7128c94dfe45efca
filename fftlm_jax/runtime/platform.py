"""The kind of processor that programs are traced for.

Some programs are written one way for a CPU and another for an accelerator: long loops are unrolled or rolled, matrix
products come in float32 or bfloat16. Whoever traces for a machine that is not this one names it here; nothing else in
the package asks the host while tracing.
"""

import contextlib

import jax

# A context of JAX's own, so that no program that was traced for one platform is found in a cache for another.
_TARGET = jax.make_user_context(None)


def traced_platform() -> str:
    """The platform that this thread traces for, "cpu", "gpu" or "tpu": that of the host unless another is named."""
    return _TARGET.value or jax.default_backend()


def tracing_for(platform: str | None) -> contextlib.AbstractContextManager:
    """The context in which programs are traced for a platform; None for the host's own.

    It holds for the thread that enters it, as `jax.set_mesh` does.
    """
    return contextlib.nullcontext() if platform is None else _TARGET(platform)
