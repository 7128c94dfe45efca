"""Saving a picture so that whoever looks at it never sees half of one."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def replace_figure(figure: Figure, file: Path) -> None:
    """Lays a figure out, replaces `file` by it in one move, and closes it."""
    figure.tight_layout()
    temporary = file.with_suffix(".tmp.png")
    try:
        figure.savefig(temporary, dpi=100)
        temporary.rename(file)
    finally:
        plt.close(figure)
        temporary.unlink(missing_ok=True)  # Of a full disk.
