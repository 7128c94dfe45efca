"""Held-out loss over seconds of training: `shakespeare_cpu` beside nanoGPT's CPU recipe, one after the other, by seed.

    pip install -e ".[bench]"
    python -m experiments.quality_per_second --data=tinyshakespeare.txt --out=runs/quality --seeds=2

The peer runs in float32 and in bfloat16 (autocast), ours in the type that `model.dtype="auto"` is here. They take
turns, so that a slow hour of a shared machine slows all. Counted are the seconds of training steps alone;
compilation, of which PyTorch's eager steps have none, is printed beside them. Both score all of the last tenth.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from fftlm_jax.checkpoints.run_directory import environment
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.process import CommandParser, path_option

DTYPES = ("float32", "bfloat16")
TARGET = 1.886  # Nats: where nanoGPT's recipe ends, as measured before.
_ROOT = Path(__file__).resolve().parent.parent


def run_nanogpt(data: str, seed: int, out: Path, dtype: str) -> list[dict[str, float]]:
    """Records of step, seconds and held-out loss of one run of the peer."""
    file = out / f"nanogpt_{dtype}_{seed}.json"
    _child("-m", "experiments.nanogpt_peer", f"--data={data}", f"--seed={seed}", f"--dtype={dtype}", f"--out={file}")
    return json.loads(file.read_text())


def run_ours(data: str, seed: int, out: Path, every: int) -> tuple[list[dict[str, float]], float]:
    """The same of one run of `shakespeare_cpu`, and the seconds that its step took to compile."""
    workdir = out / f"ours_{seed}"
    options = {"seed": seed, "data.path": data, "eval.every": every, "checkpoint.keep_best": 0, "sample.bytes": 0}
    overrides = [f"--config.{name}={value}" for name, value in options.items()]
    _child("main.py", "--config=configs/shakespeare_cpu.py", f"--workdir={workdir}", "--overwrite", *overrides)
    records = read_metrics(workdir / "metrics.jsonl")
    scores = [
        {"step": r["step"], "seconds": r["train_seconds"], "loss": r["loss"]} for r in records if r["kind"] == "eval"
    ]
    return scores, sum(r["seconds"] for r in records if r.get("event") == "compiled")


def summary(peer: list[dict[str, float]], ours: list[dict[str, float]], compiled: float) -> dict[str, Any]:
    """What the two curves say about each other."""
    end = peer[-1]["seconds"]
    reached = next((r["seconds"] for r in ours if r["loss"] <= TARGET), None)
    before_end = [r["loss"] for r in ours if r["seconds"] <= end]
    return {
        "nanoGPT seconds": round(end, 1),
        "nanoGPT loss": round(peer[-1]["loss"], 3),
        "our seconds to the target": reached and round(reached, 1),
        "of nanoGPT's time": reached and round(reached / end, 3),
        "our loss when nanoGPT ends": round(before_end[-1], 3) if before_end else None,
        "our seconds": round(ours[-1]["seconds"], 1),
        "our last loss": round(ours[-1]["loss"], 3),
        "our compilation": round(compiled, 1),
    }


def _child(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=_ROOT, check=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("python -m experiments.quality_per_second", __doc__)
    parser.add_argument("--data", type=path_option, required=True, help="TinyShakespeare as one file")
    parser.add_argument("--out", type=path_option, required=True, help="a folder for runs and results")
    parser.add_argument("--seeds", type=int, default=2, help="how many of each, from seed 0 on")
    parser.add_argument("--every", type=int, default=50, help="steps between our evaluations, which are not counted")
    args = parser.parse_args(arguments)
    data, out = str(args.data.resolve()), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(args.seeds):
        peers = {dtype: run_nanogpt(data, seed, out, dtype) for dtype in DTYPES}
        ours, compiled = run_ours(data, seed, out, args.every)
        for dtype, peer in peers.items():
            rows.append({"nanoGPT's type": dtype, **summary(peer, ours, compiled)})
            print(f"seed {seed}: {rows[-1]}", flush=True)
    for dtype in DTYPES:
        shares = [row["of nanoGPT's time"] for row in rows if row["nanoGPT's type"] == dtype]
        if all(shares):
            print(f"median share of nanoGPT's time to {TARGET} nats, {dtype}: {statistics.median(shares):.3f}")
    (out / "quality.json").write_text(json.dumps({"environment": environment(), "pairs": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
