"""Batches that grow in stages: how many micro-batches each optimizer step takes, and where its data begins.

The runs behind the spectral source document doubled and tripled their batch at equal thirds of training. A pure
function of the step, so that the step stays the only data state there is.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class BatchStages:
    """`multiples[i] * accum_steps` micro-batches a step in the i-th of equal stages of `total_steps` steps together.

    The borders are those of `optim.stage_schedule`; the last stage holds beyond `total_steps`.
    """

    accum_steps: int
    multiples: tuple[int, ...]
    total_steps: int

    def micro_batches(self, step: int) -> int:
        """Micro-batches of update number `step`, from 0."""
        return self.accum_steps * self.multiples[self._stage(step)]

    def micro_batches_before(self, step: int) -> int:
        """Micro-batches of all updates before `step`."""
        starts = [*self._starts(), max(step, self.total_steps)]
        done = (
            multiple * (min(step, end) - start)
            for multiple, start, end in zip(self.multiples, starts, starts[1:])
            if step > start
        )
        return self.accum_steps * sum(done)

    def changes_at(self, step: int) -> bool:
        """Whether this step takes another number of micro-batches than the one before it."""
        return step > 0 and self.micro_batches(step) != self.micro_batches(step - 1)

    def next_change(self, step: int) -> int | None:
        """The first step after `step` that takes another number of micro-batches, or None."""
        return next((start for start in self._starts() if start > step and self.changes_at(start)), None)

    @property
    def largest(self) -> int:
        """Micro-batches of the largest step."""
        return self.accum_steps * max(self.multiples)

    def _starts(self) -> list[int]:
        return [self.total_steps * i // len(self.multiples) for i in range(len(self.multiples))]

    def _stage(self, step: int) -> int:
        return sum(step >= start for start in self._starts()) - 1
