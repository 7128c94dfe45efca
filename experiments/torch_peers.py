"""The model and training step of this project in PyTorch, as its users would write them: what `bench` compares with.

Needs the extra `bench`. The same architecture, objective and optimizer (AdamW after clipping), the same weights to
begin with; time is mixed by `torch.fft` at the same length as here, or by a depthwise `conv1d`.
Shapes as in `fftlm_jax.model`: B batch, T time, D width, H conv heads, K taps, C chunk, V byte values.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fftlm_jax.config.schema import Config, ModelConfig
from fftlm_jax.model.language_model import Params, evaluation_low_pass
from fftlm_jax.spectral import causal_convolve, fast_fft_length, kernel_taps

Convolution = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def convolve_fft(u_BDT: torch.Tensor, kernel_DK: torch.Tensor) -> torch.Tensor:
    """Causal convolution, channel-major, by real FFTs at the next fast length."""
    T, K = u_BDT.shape[-1], kernel_DK.shape[-1]
    n = fast_fft_length(T + K - 1)
    return torch.fft.irfft(torch.fft.rfft(u_BDT, n) * torch.fft.rfft(kernel_DK, n), n)[..., :T]


def convolve_depthwise(u_BDT: torch.Tensor, kernel_DK: torch.Tensor) -> torch.Tensor:
    """Causal convolution, channel-major, by `conv1d` with a group per channel."""
    D, K = kernel_DK.shape
    return F.conv1d(F.pad(u_BDT, (K - 1, 0)), kernel_DK.flip(-1)[:, None], groups=D)


METHODS: dict[str, Convolution] = {"torch.fft": convolve_fft, "conv1d": convolve_depthwise}


def convolution_sides(u: jax.Array, kernel: jax.Array, dy: jax.Array) -> dict[str, tuple[Callable, Callable]]:
    """Calls by method: one convolution forward, and forward and backward, checked to give our values.

    They are spared the transposes that ours do: their operands lie as PyTorch likes them, channel-major.

    Args:
        u, dy: inputs and the outputs' gradient, [B, T, D].
        kernel: taps [H, K].
    """
    u_BDT, dy_BDT = (torch.from_numpy(np.array(x.swapaxes(1, 2))) for x in (u, dy))
    u_BDT.requires_grad_()
    kernel_HK = torch.from_numpy(np.array(kernel)).requires_grad_()
    ours = np.asarray(causal_convolve(u, kernel, "fft").swapaxes(1, 2))
    sides = {}
    for name, convolve in METHODS.items():

        def run(convolve: Convolution = convolve) -> torch.Tensor:
            return convolve(u_BDT, kernel_HK.repeat_interleave(u_BDT.shape[1] // kernel_HK.shape[0], dim=0))

        def forward(run: Callable = run) -> torch.Tensor:
            with torch.no_grad():
                return run()

        def both(run: Callable = run) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(run(), (u_BDT, kernel_HK), dy_BDT)

        np.testing.assert_allclose(forward().numpy(), ours, atol=1e-3)
        sides[name] = (forward, both)
    return sides


def product_side(x: jax.Array, w: jax.Array, dtype: str = "float32") -> Callable[[], torch.Tensor]:
    """A call of `x @ w` on operands, given in float32, of this type."""
    x, w = (torch.from_numpy(np.array(a)).to(getattr(torch, dtype)) for a in (x, w))
    return lambda: x @ w


class Block(nn.Module):
    """Gated convolution and feed-forward layer, both pre-norm and residual."""

    def __init__(self, config: ModelConfig, convolve: Convolution) -> None:
        super().__init__()
        D, hidden = config.d_model, round(config.d_model * config.ffn_mult)
        self.convolve = convolve
        self.mixer_norm, self.mlp_norm = nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-6)
        self.taps = nn.Parameter(torch.empty(config.conv_heads, config.kernel_len))
        self.gain = nn.Parameter(torch.ones(D))
        self.w_in, self.w_gate, self.w_out = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.w_up, self.w_down = nn.Linear(D, hidden, bias=False), nn.Linear(hidden, D, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        z = self.mixer_norm(x_BTD)
        kernel_DK = self.taps.repeat_interleave(self.gain.shape[0] // self.taps.shape[0], dim=0)
        y = self.convolve(self.w_in(z).transpose(1, 2).contiguous(), kernel_DK).transpose(1, 2)
        x_BTD = x_BTD + self.w_out(y * self.gain * F.silu(self.w_gate(z)))
        return x_BTD + self.w_down(F.gelu(self.w_up(self.mlp_norm(x_BTD)), approximate="tanh"))


class LanguageModel(nn.Module):
    """The byte model with its chunk head; returns the objective in nats of a batch of windows."""

    def __init__(self, config: Config, convolve: Convolution) -> None:
        super().__init__()
        model = config.model
        self.chunk, self.with_chunks = model.chunk, config.objective.has_chunks
        self.next_byte_weight = config.objective.next_byte_weight if self.with_chunks else 1.0
        self.embed = nn.Embedding(256, model.d_model)
        self.blocks = nn.ModuleList(Block(model, convolve) for _ in range(model.n_layers))
        self.final_norm = nn.RMSNorm(model.d_model, eps=1e-6)
        self.head = nn.Parameter(torch.empty(model.chunk, model.d_model, 256))

    def forward(self, windows_BW: torch.Tensor) -> torch.Tensor:
        T, C = windows_BW.shape[1] - self.chunk, self.chunk
        x = self.embed(windows_BW[:, :T])
        for block in self.blocks:
            x = block(x)
        x = self.final_norm(x)
        loss = F.cross_entropy((x @ self.head[0]).flatten(0, 1), windows_BW[:, 1 : T + 1].flatten())
        if not self.with_chunks:
            return loss
        boundary_BND = x[:, C - 1 :: C]
        logits = boundary_BND @ self.head.transpose(0, 1).flatten(1)  # [B, N, C * V]
        chunks = F.cross_entropy(logits.reshape(-1, 256), windows_BW[:, C:].reshape(-1))
        return chunks + self.next_byte_weight * loss


def peer_of(config: Config, params: Params, convolve: Convolution) -> LanguageModel:
    """The PyTorch model that computes what `params` compute at full band."""
    peer, low_pass = LanguageModel(config, convolve), evaluation_low_pass(config, 1)
    blocks = params["blocks"]
    with torch.no_grad():
        for i, block in enumerate(peer.blocks):
            mixer, mlp = (jax.tree.map(lambda leaf, i=i: leaf[i], blocks[name]) for name in ("mixer", "mlp"))
            _copy(block.taps, kernel_taps(mixer["spectrum"], low_pass))
            _copy(block.gain, mixer["gain"])
            for name in ("w_in", "w_gate", "w_out"):
                _copy(getattr(block, name).weight, mixer[name]["kernel"].T)
            for name in ("w_up", "w_down"):
                _copy(getattr(block, name).weight, mlp[name]["kernel"].T)
            for name in ("mixer_norm", "mlp_norm"):
                _copy(getattr(block, name).weight, blocks[name]["scale"][i])
        _copy(peer.embed.weight, params["embed"]["embedding"])
        _copy(peer.final_norm.weight, params["final_norm"]["scale"])
        _copy(peer.head, params["head"]["kernel"])
    return peer


def peer_training_step(
    config: Config, params: Params, windows_BW: np.ndarray, convolve: Convolution, *, dtype: str, compiled: bool
) -> Callable[[], torch.Tensor]:
    """A function that trains the peer one step further at every call and returns the loss before the step.

    In bfloat16 by autocast: weights, optimizer, norms, losses and transforms stay in float32, as here.
    """
    optim, model = config.optim, peer_of(config, params, convolve)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.lr.base,
        betas=(optim.b1, optim.b2),
        eps=optim.eps,
        fused=True,
    )
    forward = torch.compile(model) if compiled else model
    windows = torch.from_numpy(windows_BW.astype(np.int64))

    def one_step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(windows)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        return loss.detach()

    return one_step


def _copy(target: torch.Tensor, source: Any) -> None:
    target.copy_(torch.from_numpy(np.array(source)))
