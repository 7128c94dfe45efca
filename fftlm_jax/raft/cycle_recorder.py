"""What a fine-tuning run says and writes about itself: console lines, metrics, TensorBoard, report and picture."""

import collections
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
from tqdm import tqdm

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.config.schema import Config
from fftlm_jax.raft.advise import Advice
from fftlm_jax.raft.cycle_result import CycleResult, best_of
from fftlm_jax.raft.report import FIGURE, REPORT, write_report
from fftlm_jax.raft.tasks import Pools, Task
from fftlm_jax.recording.console import Console, duration
from fftlm_jax.recording.metrics import MetricsLog, read_metrics
from fftlm_jax.runtime.untrusted import parse_json


class RaftRecorder:
    """The voice of one run.

    Args:
        config, directory: of the run.
        done: last cycle that is done (-1 for none); what the metrics hold of later ones will be written again.
    """

    def __init__(self, config: Config, directory: RunDirectory, done: int) -> None:
        self._directory, self._cycles = directory, config.raft.cycles
        self._console = Console(directory.log)
        size = _size(directory.metrics, done)
        self._log = MetricsLog(directory.metrics, directory.tensorboard, size, max(done, 0), self._console.tolerance)
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._started = time.perf_counter()
        self._bar: tqdm | None = None

    def close(self) -> None:
        """Closes the log files and the progress bar."""
        self._end_progress()
        self._log.close()
        self._console.close()

    def started(
        self,
        task: Task,
        pools: Pools,
        moved_to: Path | None,
        results: Sequence[CycleResult],
        notes: Sequence[str],
    ) -> None:
        """The first lines of a run; `notes` are about its folder and its checkpoints."""
        for note in notes:
            self._console.say(note)
        if moved_to:
            self._console.say(f"the old run was moved to {moved_to.name}")
        example = pools.sft[0]
        shown = (example.prompt + example.answer).decode("ascii", errors="backslashreplace").strip()
        self._console.say(
            f"task {task.name}, such as {shown}: {len(pools.sft)} labelled problems, {len(pools.raft)} to sample from, "
            f"{len(pools.held_out)} held out; {jax.devices()[0].device_kind}"
        )
        if results:
            self._console.say(f"resuming after cycle {results[-1].cycle}: {_rate(results[-1])}")
            self._log.write("event", results[-1].cycle, event="resumed")

    def begin(self, cycle: int) -> None:
        """A cycle begins."""
        self._seconds.clear()
        self._cycle = cycle

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._end_progress()
            self._seconds[name] += time.perf_counter() - start

    def say(self, line: str) -> None:
        """Prints and logs one line."""
        self._console.say(line)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Moves the bar of the phase under way, on a terminal."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            label = f"cycle {self._cycle}/{self._cycles}"
            self._bar = tqdm(total=total, unit=f" {unit}", desc=label, dynamic_ncols=True, leave=False)
        self._bar.update(done - self._bar.n)

    def cycle(self, results: Sequence[CycleResult], advice: Sequence[Sequence[Advice]]) -> None:
        """A cycle is over: what it showed, what the rules say, and the report and the picture with it."""
        result, seconds = results[-1], {name: round(s, 2) for name, s in self._seconds.items()}
        self._log.write("cycle", result.cycle, **result.to_dict(), seconds=seconds)
        for item in advice[-1]:
            self._log.write("event", result.cycle, event="advice", **item._asdict())
        self._log.scalars("held_out", result.cycle, rate=result.held_out.rate, gold_loss=result.held_out.gold_loss)
        if result.samples:
            s = result.samples
            self._log.scalars("samples", result.cycle, rate=s.rate, kept=s.kept, coverage=s.coverage)
        if result.train:
            self._log.scalars("train", result.cycle, lr=result.train.lr, clip_fraction=result.train.clip_fraction)
        self._log.flush()
        self._console.say(f"{_words(result, self._cycles)} ({duration(sum(seconds.values()))})")
        if result.samples and result.samples.errors:
            self._console.say(f"  the verifier could not judge {result.samples.errors:,} of the samples")
        for item in advice[-1]:
            self._console.say(f"  {item.rule}: {item.text}")
        self._report(results, advice)

    def finished(self, results: Sequence[CycleResult], advice: Sequence[Sequence[Advice]]) -> None:
        """The last lines of a run."""
        best = best_of(results)
        self._log.write("event", results[-1].cycle, event="finished", best=best.cycle)
        self._log.flush()
        if results[-1].cycle < self._cycles:
            self._console.say("stopped, as raft.on_regress says: the last cycle lies clearly below the best")
        self._report(results, advice)
        self._console.say(
            f"finished {results[-1].cycle} cycles in {duration(time.perf_counter() - self._started)}: from "
            f"{_rate(results[0])} to {_rate(results[-1])}; best is cycle {best.cycle} with {_rate(best)}"
        )
        self._console.say(f"see {self._directory.root / REPORT} and {self._directory.root / FIGURE}")

    def _report(self, results: Sequence[CycleResult], advice: Sequence[Sequence[Advice]]) -> None:
        with self._console.tolerance.of(REPORT):
            write_report(self._directory.root, results, advice)

    def _end_progress(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _words(result: CycleResult, cycles: int) -> str:
    samples, train = result.samples, result.train
    if samples is None:
        return f"after supervised fine-tuning: {_rate(result)}"
    parts = [f"cycle {result.cycle}/{cycles}:"]
    if result.parent != result.cycle - 1:
        parts.append(f"from the weights of cycle {result.parent},")
    parts.append(f"{samples.rate:.1%} of {samples.samples:,} samples right,")
    parts.append(f"kept {samples.kept:,} from {samples.coverage:.0%} of the prompts,")
    if train is None:
        parts.append("nothing to train on;")
    else:
        losses = f"loss {train.losses[0]:.3f} -> {train.losses[-1]:.3f}"
        parts.append(f"{train.steps} steps at lr={train.lr:.1e} {losses};")
    return " ".join([*parts, _rate(result)])


def _rate(result: CycleResult) -> str:
    return f"held out {result.held_out.rate:.1%} (± {1.96 * result.held_out.se:.1%})"


def _size(metrics: Path, done: int) -> int:
    """Bytes of the records of cycles up to `done`."""
    size = 0
    if not metrics.exists():
        return size
    with metrics.open("rb") as file:
        for line in file:
            try:
                if parse_json(line)["step"] > done:
                    break
            except (ValueError, LookupError, TypeError):
                break
            size += len(line)
    return size


def has_finished(metrics: Path) -> bool:
    """Whether the last thing on record is that the run finished."""
    records = read_metrics(metrics) if metrics.exists() else []
    return bool(records) and records[-1].get("event") == "finished"
