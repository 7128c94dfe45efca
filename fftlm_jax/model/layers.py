"""The matrices of the model: bias-free projections and the linear byte head.

Shapes: C bytes of a chunk, D width, V = 256 byte values.
"""

import contextlib

import jax
import jax.numpy as jnp
from flax import nnx

from fftlm_jax.config.schema import ModelConfig
from fftlm_jax.runtime.platform import multiply, traced_platform

VOCABULARY = 256


class ByteHead(nnx.Module):
    """Logits of the next `chunk` bytes from one hidden state, each byte independent of the others given the state.

    A next-byte model is the same thing with one slice, so weights move between objectives.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        # Small, so that training starts near the uniform distribution (8 bits per byte).
        init = nnx.initializers.normal(stddev=0.1 * config.d_model**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), (config.chunk, config.d_model, VOCABULARY)))
        self.dtype = compute_dtype(config)

    def next_byte(self, hidden: jax.Array) -> jax.Array:
        """Logits of byte t + 1: [..., D] -> [..., V], float32."""
        return self._logits(hidden, self.kernel[0])

    def chunk(self, hidden: jax.Array) -> jax.Array:
        """Logits of bytes t + 1 .. t + C: [..., D] -> [..., C, V], float32."""
        chunk, width, _ = self.kernel.shape
        flat = self.kernel[...].transpose(1, 0, 2).reshape(width, chunk * VOCABULARY)
        return self._logits(hidden, flat).reshape(*hidden.shape[:-1], chunk, VOCABULARY)

    def _logits(self, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        # One flat product, for the reason that `Projection` gives.
        logits = product(hidden.reshape(-1, hidden.shape[-1]), kernel, self.dtype)
        return logits.reshape(*hidden.shape[:-1], kernel.shape[-1])


def compute_dtype(config: ModelConfig) -> jnp.dtype:
    """The type of the operands of products on the platform that is traced for."""
    return jnp.dtype(config.dtype_on(traced_platform()))


def activation_dtype(config: ModelConfig) -> jnp.dtype:
    """The type of what lies between products: that of their operands, but float32 on CPU.

    CPUs have bfloat16 in products alone and would convert at every other use; a training step of `quickstart` in
    bfloat16 is a tenth faster so, and the residual stream keeps its digits.
    """
    return jnp.dtype(jnp.float32) if traced_platform() == "cpu" else compute_dtype(config)


def products_at(precision: str) -> contextlib.AbstractContextManager:
    """The context in which products are traced with `model.precision`: the platform's own at "default"."""
    return contextlib.nullcontext() if precision == "default" else jax.default_matmul_precision(precision)


class Projection(nnx.Module):
    """Bias-free projection of every position, with float32 master weights of variance `scale^2 / fan_in`.

    Args:
        fan_in, fan_out: width before and after.
        scale: of the initial weights.
        dtype: of the operands of its products; they are added up in float32.
        rngs: seeds of the weights.
    """

    def __init__(self, fan_in: int, fan_out: int, scale: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.normal(stddev=scale * fan_in**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), (fan_in, fan_out)))
        self.in_features, self.dtype = fan_in, dtype
        self.by_columns = False  # While decoding on CPU: the kernel is then transposed, [E, D], and rounded.

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[..., D] -> [..., E] in the dtype of `x_BTD`.

        As one flat product: over two leading axes, XLA's CPU backend makes the weight gradient of transposed copies,
        and forward and backward together take twice as long (measured).
        """
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        if self.by_columns:
            y_NE = column_product(rounded(x_ND, self.dtype), self.kernel[...])
        else:
            y_NE = product(x_ND, self.kernel[...], self.dtype)
        return y_NE.astype(x_BTD.dtype).reshape(*x_BTD.shape[:-1], -1)


def product(x_ND: jax.Array, kernel_DE: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`x @ kernel` of operands that are cast to `dtype`, added up in float32: [N, D] x [D, E] -> float32 [N, E].

    In bfloat16 both gradients are such products too, in the dtypes of `x_ND` and `kernel_DE`: that of a float32 kernel
    is not rounded, as it would be by JAX's own rule.
    """
    if dtype != jnp.bfloat16:
        return jnp.matmul(x_ND.astype(dtype), kernel_DE.astype(dtype))
    return _low_product(x_ND, kernel_DE)


@jax.custom_vjp
def _low_product(x_ND: jax.Array, kernel_DE: jax.Array) -> jax.Array:
    return _low_product_forward(x_ND, kernel_DE)[0]


def _low_product_forward(x_ND: jax.Array, kernel_DE: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    low_ND, low_DE = x_ND.astype(jnp.bfloat16), kernel_DE.astype(jnp.bfloat16)
    # Empty arrays tell the backward pass the dtypes.
    return multiply(low_ND, low_DE), (low_ND, low_DE, jnp.zeros(0, x_ND.dtype), jnp.zeros(0, kernel_DE.dtype))


def _low_product_backward(saved: tuple[jax.Array, ...], dy_NE: jax.Array) -> tuple[jax.Array, jax.Array]:
    low_ND, low_DE, like_x, like_kernel = saved
    dy_NE = dy_NE.astype(jnp.bfloat16)
    dx_ND, dkernel_DE = multiply(dy_NE, low_DE.T), multiply(low_ND.T, dy_NE)
    return dx_ND.astype(like_x.dtype), dkernel_DE.astype(like_kernel.dtype)


_low_product.defvjp(_low_product_forward, _low_product_backward)


def rounded(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The values of `x` to the digits of `dtype`, for decoding: on CPU in float32, in which few products are faster."""
    if traced_platform() != "cpu":
        return x.astype(dtype)
    digits = jnp.finfo(dtype)
    # Not by two casts, which XLA may leave out.
    return jax.lax.reduce_precision(x.astype(jnp.float32), digits.nexp, digits.nmant)


def column_product(x_ND: jax.Array, matrix_ED: jax.Array) -> jax.Array:
    """`x @ matrix.T` in the order (matrix @ x.T).T, for few positions: what projections do while decoding.

    For few positions XLA's CPU backend spends its time on repacking the matrix of `x @ w` at every call; in this order,
    which the barriers keep it from undoing, it reads the matrix as it lies (1.5 to 5 times faster at 16 positions, the
    same at one; measured).
    """
    barrier = jax.lax.optimization_barrier
    y_EN = jnp.matmul(matrix_ED, barrier(x_ND.T), preferred_element_type=jnp.float32)
    return barrier(y_EN).T
