"""The kind of processor that programs are traced for, and matrix products as it multiplies them fast.

Some programs are written one way for a CPU and another for an accelerator: long loops are unrolled or rolled, operands
laid out. Whoever traces for a machine that is not this one names it here; nothing else in the package asks the host
while tracing.
"""

import contextlib

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

# A context of JAX's own, so that no program that was traced for one platform is found in a cache for another.
_TARGET = jax.make_user_context(None)
_IS_PORTABLE = jax.make_user_context(False)


def traced_platform() -> str:
    """The platform that this thread traces for, "cpu", "gpu" or "tpu": that of the host unless another is named."""
    return _TARGET.value or jax.default_backend()


def tracing_for(platform: str | None) -> contextlib.AbstractContextManager:
    """The context in which programs are traced for a platform; None for the host's own.

    It holds for the thread that enters it, as `jax.set_mesh` does.
    """
    return contextlib.nullcontext() if platform is None else _TARGET(platform)


def tracing_to_export() -> contextlib.AbstractContextManager:
    """The context for programs that other versions and platforms shall run: how arrays lie is left to them."""
    return _IS_PORTABLE(True)


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """Products of matrices, [..., M, K] x [..., K, N] -> [..., M, N]: those of training, but for attention's.

    Processors with matrix units (see `matrix_units`) multiply bfloat16 numbers and add in float32. XLA's CPU backend
    hands a product to its library of kernels for them only where the sum is asked for in float32 and all three matrices
    lie row by row in memory. A transposed operand it reads as it lies, at a third of the rate, so the copy is really
    made here: on two AVX-512 BF16 cores 369 against 140 GFLOP/s for `x.T @ dy` of 4096 x 512 and 4096 x 1024. A
    transposed result jaxlib 0.10 compiles and then refuses to run ("Unsupported element type for DotThunk").

    Returns:
        float32 for bfloat16 operands; else the plain product, in the dtype of the operands.
    """
    if a.dtype != jnp.bfloat16 or b.dtype != jnp.bfloat16:
        return jnp.matmul(a, b)
    if traced_platform() == "cpu" and any(size > 1 for size in partitioned_axes().values()):
        # Several CPUs are a simulation of accelerators: the same numbers, without what the partitioner cannot cut.
        return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32))
    return _by_rows(jnp.matmul(_by_rows(a), _by_rows(b), preferred_element_type=jnp.float32))


def partitioned_axes() -> dict[str, int]:
    """Sizes of the axes of the mesh in force along which the compiler partitions; none inside `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}


def _by_rows(x: jax.Array) -> jax.Array:
    """The same array, on CPU really laid out by rows, even where it is the transpose of another."""
    if traced_platform() != "cpu" or _IS_PORTABLE.value:
        return x
    return with_layout_constraint(jnp.asarray(x), Layout(tuple(range(x.ndim))))
