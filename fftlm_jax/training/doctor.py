"""Is it training well? Applies the rules of `diagnostics` to a run, finished or under way, or to a text log.

    python -m fftlm_jax.training.doctor runs/quickstart
    python -m fftlm_jax.training.doctor old_log.txt --lr=2e-4

Prints warnings, healthy signs and notes, each with its evidence, and for a warning the one thing to change. A text log
is one in the source documents' format (see text_log.py); what it does not tell is taken from their command. The exit
code says whether the run could be read (0, else 1 or 4), not how it does.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from fftlm_jax.command_line import run_command
from fftlm_jax.errors import UsageError
from fftlm_jax.training.diagnostics import HEALTHY, NOTE, WARNING, Finding, diagnose, facts_of
from fftlm_jax.training.metrics import read_metrics
from fftlm_jax.training.samples import read_samples
from fftlm_jax.training.saved_run import open_config
from fftlm_jax.training.text_log import DOCUMENTS_LR, read_text_log


def examine(path: Path, base_lr: float = DOCUMENTS_LR) -> list[Finding]:
    """All findings about a run directory or a text log.

    Args:
        path: of either.
        base_lr: peak learning rate of a text log.

    Raises:
        RunError: if it is neither, or nothing is recorded there.
    """
    if not path.is_dir():
        log = read_text_log(path, base_lr)
        return diagnose(log.records, log.facts)
    directory, config = open_config(path)
    if not directory.metrics.is_file():
        raise UsageError(f"{path} holds a run that has not begun; let it train, or name another or a text log.")
    records = read_metrics(directory.metrics)
    if not any(record["kind"] == "train" for record in records):
        raise UsageError(f"{path}: no step is recorded yet; ask again later.")
    return diagnose(records, facts_of(config), read_samples(directory.samples))


def report(findings: Iterable[Finding]) -> str:
    """The findings as text: warnings first, then healthy signs, then notes."""
    found = list(findings)
    lines = []
    for severity in (WARNING, HEALTHY, NOTE):
        for finding in (f for f in found if f.severity == severity):
            lines.append(f"{severity}: {finding.rule}, step {finding.step}")
            lines.append(f"    {finding.text}")
            evidence = ", ".join(f"{name}={value:.4g}" for name, value in finding.evidence.items())
            lines.append(f"    evidence: {evidence}")
            if finding.change:
                lines.append(f"    change: {finding.change}")
    counts = {severity: sum(f.severity == severity for f in found) for severity in (WARNING, HEALTHY)}
    lines.append(f"{counts[WARNING]} warnings, {counts[HEALTHY]} healthy signs")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m fftlm_jax.training.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory or text log")
    parser.add_argument(
        "--lr", type=float, default=DOCUMENTS_LR, help="peak learning rate of a text log (default: the documents')"
    )
    args = parser.parse_args(arguments)
    return run_command(lambda: print(report(examine(args.run, args.lr))))


if __name__ == "__main__":
    sys.exit(main())
