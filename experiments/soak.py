"""A run that is killed again and again, and must end as if nothing had happened.

    python -m experiments.soak --kills=50 --out=runs/soak

One tiny run is trained without a fault. The same run is then killed at moments drawn from `--seed`: by SIGKILL and
SIGTERM, at random times and at named places (in a step, before and behind each part of a save, in the deletion of old
steps, at a raise, in a compilation), and started again each time. At the end both must have the same state, bit for
bit, and the same records of every step. Prints what died where; the exit code is 0 only if the two runs are equal.
"""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from fftlm_jax.checkpoints.saved_step import MANIFEST, manifest_fault, read_arrays, read_host, step_numbers
from fftlm_jax.checkpoints.verification import state_hash
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.process import CommandParser, path_option

ROOT = Path(__file__).resolve().parent.parent
INTERVAL = 8  # Steps between saves; an epoch is as long.
_CUTOFFS = (*range(4, 33, 2), 33)
_EPOCHS_PER_RAISE = 8
_PLACES = ("before_arrays", "after_arrays", "before_manifest", "after_manifest", "during_deletion", "mid_step")
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
_TIMES = ("bytes_per_second", "train_seconds")
_LONGEST_LIFE_SECONDS = 900


class Kill(NamedTuple):
    """How a process is to end: at a named place, or (place None) some time after its first save."""

    action: str
    place: str | None
    fault: str  # As faults.py reads it; "" for a random time.

    def words(self) -> str:
        return f"SIG{self.action.upper()} {self.place or 'at a random time'}"


def training_records(file: Path) -> list[dict[str, Any]]:
    """What `metrics.jsonl` says of training, without times: equal for equal runs, however often they were resumed."""
    return [
        {name: value for name, value in record.items() if name not in _TIMES}
        for record in read_metrics(file)
        if record["kind"] != "event" or record["event"] in ("cutoff_raised", "warning")
    ]


def options_of(kills: int) -> list[str]:
    """The run: long enough that every death but those in a compilation may follow a save, and raises all along."""
    epochs = 3 * kills + 6
    values = {
        **{"model.seq_len": 64, "model.kernel_len": 16, "model.d_model": 16, "model.conv_heads": 4},
        **{
            "train.batch_size": 4,
            "train.steps_per_epoch": INTERVAL,
            "train.epochs": epochs,
            "train.log_every": INTERVAL,
        },
        **{"curriculum.rule": "schedule", "curriculum.schedule": raises_of(epochs), "eval.max_bytes": 4096},
        **{"eval.every": 4 * INTERVAL, "checkpoint.every": INTERVAL},
    }
    return [f"--config={ROOT / 'configs' / 'tiny.py'}", *(f"--config.{name}={value}" for name, value in values.items())]


def raises_of(epochs: int) -> tuple[tuple[int, int], ...]:
    """(epoch, cutoff), evenly over the run, the first at its start."""
    return tuple((i * _EPOCHS_PER_RAISE, cutoff) for i, cutoff in enumerate(_CUTOFFS) if i * _EPOCHS_PER_RAISE < epochs)


def next_kill(rng: random.Random, done: int, kills_left: int, total: int) -> Kill:
    """Draws how the process that resumes from step `done` ends."""
    action = rng.choice(("kill", "term"))
    if done + 4 * INTERVAL > total - 2 * INTERVAL * (kills_left - 1) or rng.random() < 0.1:
        return Kill(action, "in_compile", f"{action}@in_compile")  # Of its first step: it costs no progress.
    if rng.random() < 0.3:
        return Kill(action, None, "")
    raises = [epoch * INTERVAL for epoch, _ in raises_of(total // INTERVAL)]
    raise_at = next((step for step in raises if INTERVAL < step - done <= 3 * INTERVAL), None)
    if raise_at is not None and rng.random() < 0.5:
        return Kill(action, "before_raise_save", f"{action}@before_raise_save:{raise_at}")
    place, save = rng.choice(_PLACES), (done // INTERVAL + 2) * INTERVAL
    if place == "during_deletion":
        return Kill(action, place, f"{action}@{place}")
    return Kill(action, place, f"{action}@{place}:{save - rng.randrange(INTERVAL) * (place == 'mid_step')}")


def newest(workdir: Path) -> int:
    """Newest step with a manifest; 0 for none."""
    checkpoints = workdir / "checkpoints"
    return max((s for s in step_numbers(checkpoints) if (checkpoints / str(s) / MANIFEST).is_file()), default=0)


class Child:
    """One process of the run."""

    def __init__(self, options: list[str], workdir: Path, fault: str = "") -> None:
        self._workdir, self._log = workdir, workdir.with_suffix(".log")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FFTLM_JAX_FAULT": fault}
        environment.setdefault("JAX_PLATFORMS", "cpu")
        command = [sys.executable, str(ROOT / "main.py"), *options, f"--workdir={workdir}"]
        command.append(f"--config.compile_cache={workdir.parent / 'compile_cache'}")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, kill: Kill, done: int, rng: random.Random) -> None:
        """Waits for the end; brings it about where that is to be at a random time, or where a fault never came."""
        begun, seen = time.monotonic(), None
        delay = rng.random()
        while self.process.poll() is None:
            reached = newest(self._workdir)
            if reached > done and seen is None:
                seen = time.monotonic()
            if kill.place is None and seen is not None:
                time.sleep(delay)  # A save and the steps up to the next take about a second.
                self.process.send_signal(_SIGNALS[kill.action])
                self.process.wait(_LONGEST_LIFE_SECONDS)
            elif reached >= done + 6 * INTERVAL or time.monotonic() - begun > _LONGEST_LIFE_SECONDS:
                self.process.kill()
                self.process.wait()
            time.sleep(0.005)

    def last_words(self) -> str:
        return (self._log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]


def soak(kills: int, out: Path, seed: int = 0) -> list[str]:
    """Runs both and compares them; returns what is wrong, sentence by sentence."""
    rng, options = random.Random(seed), options_of(kills)
    total = next(int(o.split("=")[1]) for o in options if o.startswith("--config.train.epochs=")) * INTERVAL
    straight, killed = out / "straight", out / "killed"
    print(f"{total} steps without a fault", flush=True)
    if code := Child(options, straight).process.wait():
        return [f"the undisturbed run ended with exit code {code}; see {straight}.log"]
    deaths: collections.Counter[str] = collections.Counter()
    for number in range(1, kills + 1):
        done = newest(killed)
        kill = next_kill(rng, done, kills - number + 1, total)
        child = Child(options, killed, kill.fault)
        child.wait(kill, done, rng)
        code, wanted = child.process.returncode, -signal.SIGKILL if kill.action == "kill" else 128 + signal.SIGTERM
        print(
            f"[{number}/{kills}] from step {done}: {kill.words()}, exit code {code}, step {newest(killed)}", flush=True
        )
        if code != wanted:
            return [f"exit code {code} where {wanted} was due ({kill.fault or 'random'}): {child.last_words()}"]
        deaths[kill.words()] += 1
    child = Child(options, killed)
    if code := child.process.wait():
        return [f"the last process ended with exit code {code}: {child.last_words()}"]
    print("\n".join(f"{count:4}  {words}" for words, count in sorted(deaths.items())))
    return differences(straight, killed, total)


def differences(straight: Path, killed: Path, total: int) -> list[str]:
    """What is not the same in two finished runs, or not whole."""
    found = []
    for step in step_numbers(killed / "checkpoints"):
        if fault := manifest_fault(killed / "checkpoints" / str(step)):
            found.append(f"step {step}: {fault}")
    hashes = [_hash(folder / "checkpoints" / str(total)) for folder in (straight, killed)]
    if hashes[0] != hashes[1]:
        found.append(f"the states of step {total} differ: {hashes[0]} and {hashes[1]}")
    expected, got = (training_records(folder / "metrics.jsonl") for folder in (straight, killed))
    if expected != got:
        unlike = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), min(len(expected), len(got)))
        shown = [json.dumps(records[unlike]) if unlike < len(records) else "nothing" for records in (expected, got)]
        found.append(f"metrics.jsonl differs at record {unlike}: {shown[0]} and {shown[1]}")
    print(f"state of step {total}: {hashes[1]}; {len(got)} records")
    return found


def _hash(step: Path) -> str:
    return state_hash(read_arrays(step), read_host(step)["controller"])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0 if the killed run is the undisturbed one."""
    parser = CommandParser("python -m experiments.soak", __doc__)
    parser.add_argument("--kills", type=int, default=50, help="how often the run is killed")
    parser.add_argument(
        "--out", type=path_option, required=True, help="folder of both runs; one that is there is replaced"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # Orbax narrates every read at WARNING.
    if args.kills < 1:
        parser.error("--kills: must be at least 1")
    out = args.out.resolve()
    for name in ("straight", "killed"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    wrong = soak(args.kills, out, args.seed)
    print("\n".join(f"DIFFERENT: {sentence}" for sentence in wrong) or "equal, bit for bit", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
