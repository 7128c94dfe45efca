"""nanoGPT's recipe for training on a laptop's CPU, written anew in PyTorch: the peer of `shakespeare_cpu`.

The published recipe (github.com/karpathy/nanoGPT, README, "I only have a macbook"): 4 layers, 4 heads, width 128,
blocks of 64, batches of 12, 2000 steps, no dropout, no compilation; AdamW (0.9, 0.99) with decay 0.1 on matrices, clip
1, learning rate 1e-3 after 100 steps of warm-up, then a cosine to 1e-4. Needs the extra `bench`.

    python -m experiments.nanogpt_peer --data=tinyshakespeare.txt --out=nanogpt.json
"""

import json
import math
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fftlm_jax.runtime.process import CommandParser, path_option

LAYERS, HEADS, WIDTH, BLOCK, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
_PEAK, _LAST, _WARMUP = 1e-3, 1e-4, 100


class Layer(nn.Module):
    """Attention and a feed-forward network, each after a layer norm without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        q, k, v = (
            part.view(B, T, HEADS, -1).transpose(1, 2) for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, WIDTH))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """A decoder-only Transformer whose output matrix is its embedding."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * LAYERS) if residual else 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, vocabulary]."""
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        for layer in self.layers:
            h = layer(h)
        return self.norm(h) @ self.tokens.weight.T


def learning_rate(step: int) -> float:
    """Warm-up, then a cosine over all steps."""
    if step < _WARMUP:
        return _PEAK * (step + 1) / (_WARMUP + 1)
    return _LAST + (_PEAK - _LAST) * (1 + math.cos(math.pi * (step - _WARMUP) / (STEPS - _WARMUP))) / 2


@torch.no_grad()
def held_out_loss(model: GPT, text: torch.Tensor) -> float:
    """Nats per character over all of the held-out part, in windows of a block side by side."""
    windows = text[: (len(text) - 1) // BLOCK * BLOCK + 1]
    x, y = windows[:-1].view(-1, BLOCK), windows[1:].view(-1, BLOCK)
    losses = [
        F.cross_entropy(model(x[i : i + 256]).flatten(0, 1), y[i : i + 256].flatten(), reduction="sum")
        for i in range(0, len(x), 256)
    ]
    return float(sum(losses)) / x.numel()


def train(text: bytes, seed: int, every: int, dtype: str = "float32") -> list[dict[str, float]]:
    """Trains to the end; returns step, seconds of training alone, and held-out nats at every so many steps.

    In bfloat16 by autocast, as the recipe has it on GPUs; evaluations are in float32.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    characters = {byte: i for i, byte in enumerate(sorted(set(text)))}
    codes = torch.tensor([characters[byte] for byte in text])
    train_part, held_out = codes.split([int(0.9 * len(codes)), len(codes) - int(0.9 * len(codes))])
    model = GPT(len(characters))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=_PEAK, betas=(0.9, 0.99))
    records, seconds = [], 0.0
    for step in range(STEPS):
        begun = time.perf_counter()
        starts = rng.integers(0, len(train_part) - BLOCK, BATCH)
        rows = torch.stack([train_part[i : i + BLOCK + 1] for i in starts])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += time.perf_counter() - begun
        if (step + 1) % every == 0 or step + 1 == STEPS:
            records.append({"step": step + 1, "seconds": seconds, "loss": held_out_loss(model, held_out)})
            print(f"nanoGPT step {step + 1}/{STEPS}: {seconds:.0f} s, {records[-1]['loss']:.3f} nats", flush=True)
    return records


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("python -m experiments.nanogpt_peer", __doc__)
    parser.add_argument(
        "--data", type=path_option, required=True, help="a text, TinyShakespeare for the published figure"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations, which are not timed")
    parser.add_argument("--out", type=path_option, help="a JSON file for the records")
    args = parser.parse_args(arguments)
    with open(args.data, "rb") as file:
        records = train(file.read(), args.seed, args.every, args.dtype)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(records, file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
