"""`samples.txt`: what a model wrote at each evaluation, under a heading that says when."""

import re
from pathlib import Path

from fftlm_jax.untrusted import printable

_HEADING = re.compile(r"^=== step ([0-9]{1,18}), cutoff [0-9]+, bpb \S+\n", re.MULTILINE)


def sample_entry(step: int, cutoff: int, bpb: float, text: str) -> str:
    """One sample as the file holds it: what was written cannot drive the terminal that shows it."""
    text = printable(text)
    return f"=== step {step}, cutoff {cutoff}, bpb {bpb:.3f}\n{text}\n\n"


def read_samples(file: Path) -> list[tuple[int, str]]:
    """(updates done, text) of every sample; none without the file."""
    if not file.exists():
        return []
    _, *parts = _HEADING.split(file.read_text(encoding="utf-8", errors="replace"))
    return [(int(step), text.removesuffix("\n\n")) for step, text in zip(parts[::2], parts[1::2])]
