"""Text logs in the source documents' format, read as the records and facts that the rules of a run look at.

    Epoch 1 avg_loss=2.86 cutoff=128/513
    Epoch 2 🚀 CUTOFF RAISED: 128 -> 256 (loss plateaued)
      step 10/1000 loss=3.45 lr=2.0e-4 cutoff=256
    [PLATEAU] 128 -> 512
      LR REDUCED: 2.0e-4 -> 1.0e-4 (precision mode)
    loss: 3.0 → 2.95 → 2.90

The console lines of this package, in `run.log`, are read as well; so are colours, UTF-16 and decimal commas. What a
line has besides is ignored, and so is every other line. Epochs count from 0, as in the documents.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fftlm_jax.curriculum import Rule
from fftlm_jax.doctor.evidence import EVEN_NOISE, Facts
from fftlm_jax.optim import stages_in_steps
from fftlm_jax.recording.history import Record
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.untrusted import log_text

_NUMBER = r"([0-9]+(?:[.,][0-9]+|\.)?(?:e[-+]?[0-9]+)?|nan|[-+]?inf)"  # Also with a decimal comma.
_COUNT = r"([0-9]{1,9})"
_STEP = re.compile(rf"\bstep {_COUNT}/{_COUNT} loss={_NUMBER}(?:.*?\blr={_NUMBER})?(?:.*?\bcutoff={_COUNT})?", re.I)
_RAISE = re.compile(rf"(?:CUTOFF RAISED:|\[PLATEAU\]) *{_COUNT} *(?:->|→) *{_COUNT}", re.I)
_REDUCED = re.compile(rf"LR REDUCED: *{_NUMBER} *(?:->|→) *{_NUMBER}", re.I)
_EPOCH = re.compile(rf"\bepoch {_COUNT}\b", re.I)
_AVERAGE = re.compile(rf"\bepoch {_COUNT}(/[0-9]+)? avg_loss={_NUMBER}(?:.*?\bcutoff={_COUNT}(?:/{_COUNT})?)?", re.I)
_CHAIN = re.compile(rf"\bloss: *{_NUMBER}((?: *(?:->|→) *{_NUMBER})+)")

# The command that the documents give with their logs, and what they say of its rule and stages.
_STEPS_PER_EPOCH, _EPOCHS, _LOG_EVERY, _WINDOWS, _BINS = 1000, 50, 10, 32, 513
_STAGES = ((2, 1.0, 0.1), (3, 1.0, 0.1), ("rest", 1.0, 0.05))
DOCUMENTS_LR = 2e-4


class TextLog(NamedTuple):
    """A log as the rules want it."""

    records: list[Record]
    facts: Facts


class _Reader:
    """Reads lines one after the other; what a line means depends on the epoch that it stands in."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.steps_per_epoch = _STEPS_PER_EPOCH
        self.freq_bins = 0
        self.factor = 1.0
        self._epoch = 0
        self._step = 0  # Updates done at the last line.

    def read(self, line: str) -> None:
        """Takes in one line; passes over what it does not know."""
        if found := _STEP.search(line):
            self._read_step(*found.groups())
        elif found := _AVERAGE.search(line):
            self._read_average(*found.groups())
        elif (found := _RAISE.search(line)) and 0 < int(found[1]) < int(found[2]):
            if epoch := _EPOCH.search(line):
                self._epoch = int(epoch[1])
                self._step = max(self._step, self._epoch * self.steps_per_epoch)
            self._add("event", self._step, event="cutoff_raised", **{"from": int(found[1]), "to": int(found[2])})
        elif found := _REDUCED.search(line):
            before, after = _value(found[1]), _value(found[2])
            if 0 < before < math.inf and 0 < after < math.inf:
                self.factor = after / before
        elif found := _CHAIN.search(line):
            for loss in (found[1], *re.findall(_NUMBER, found[2])):
                self._step += _LOG_EVERY
                self._add_loss(self._step, loss, None, None)

    def _read_step(self, step: str, of: str, loss: str, lr: str | None, cutoff: str | None) -> None:
        if not int(of):
            return
        self.steps_per_epoch = int(of)
        at = self._epoch * int(of) + int(step)
        if at <= self._step and self.records:
            self._epoch = self._step // int(of) + (self._step % int(of) > 0)
            at = self._epoch * int(of) + int(step)
        self._step = at
        self._add_loss(at, loss, lr, cutoff)

    def _read_average(self, epoch: str, of: str | None, loss: str, cutoff: str | None, bins: str | None) -> None:
        """Ends an epoch: the documents count from 0, the console of this package epochs done."""
        self._epoch = int(epoch) + (of is None)
        self.freq_bins = int(bins or self.freq_bins)
        end = self._epoch * self.steps_per_epoch
        if end - self._step >= self.steps_per_epoch or not self.records:
            self._add_loss(end, loss, None, cutoff)  # Of an epoch without lines of its own.
        self._step = max(self._step, end)

    def _add_loss(self, step: int, loss: str, lr: str | None, cutoff: str | None) -> None:
        values = {"lr": _value(lr) if lr else None, "cutoff": int(cutoff) if cutoff else None}
        self._add("train", step, loss=_value(loss), **values)

    def _add(self, kind: str, step: int, **values: object) -> None:
        self.records.append({"kind": kind, "step": step, **values})


def _value(number: str) -> float:
    return float(number.replace(",", "."))


def read_text_log(file: Path, base_lr: float = DOCUMENTS_LR) -> TextLog:
    """Reads a text log.

    Args:
        file: its path.
        base_lr: peak learning rate of the run, which its lines do not tell.

    Raises:
        UsageError: if it cannot be read, or holds no line of the documents' format.
    """
    try:
        lines = log_text(file.read_bytes()).splitlines()
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}); name a run directory or a text log.") from None
    reader = _Reader()
    for line in lines:
        reader.read(line)
    if not any(record["kind"] == "train" for record in reader.records):
        raise UsageError(
            f"{file} holds no line such as 'step 10/1000 loss=3.45 lr=2.0e-4 cutoff=256'; name a run directory or a "
            "text log."
        )
    return TextLog(reader.records, _facts(reader, base_lr))


def _facts(reader: _Reader, base_lr: float) -> Facts:
    """Those of the documents' command, but for what the log itself tells."""
    cutoffs = list(_cutoffs(reader.records))
    top = max([reader.freq_bins or _BINS, *cutoffs])
    rule = Rule(
        name="plateau",
        ladder=(128, 256, 512, top) if top > 512 else (*sorted({*cutoffs, top}),),
        freq_bins=top,
        check_every=reader.steps_per_epoch,
        steps_per_epoch=reader.steps_per_epoch,
        min_epoch=2,
        window=50,
        threshold=0.005,
        schedule=(),
    )
    return Facts(
        curriculum=rule,
        initial_cutoff=cutoffs[0] if cutoffs else rule.ladder[0],
        stages=stages_in_steps(_STAGES, reader.steps_per_epoch, _EPOCHS),
        base_lr=base_lr,
        restart="pulse",  # What their program does.
        factor=reader.factor,
        clip=math.inf,
        temperature=1.0,
        assumed_noise=EVEN_NOISE["next_byte"] / _WINDOWS**0.5,
    )


def _cutoffs(records: list[Record]) -> Iterator[int]:
    for record in records:
        yield from (record[name] for name in ("cutoff", "from", "to") if record.get(name))
