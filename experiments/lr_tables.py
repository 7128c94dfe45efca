"""Tables of cycle learning rates, rounded as the source card prints them."""

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal

from fftlm_jax.raft.cycle_lr import CycleLR, lr_area

# The card's decay factors and what it says of each; 1 is the constant baseline.
DECAY_NOTES = {
    1.0: "baseline for comparison",
    0.95: "little decay",
    0.85: "where it starts",
    0.70: "if 0.85 is too weak",
}


def scientific(value: float, digits: int) -> str:
    """`5.00e-5` with so many digits behind the point, halves rounded up in decimal as the card rounds them.

    >>> scientific(5e-5 * 0.7**2, 1), scientific(1e-3, 2), scientific(9.996e-5, 1)
    ('2.5e-5', '1.00e-3', '1.0e-4')
    """
    exact = Decimal(repr(float(value)))
    # Products such as 5e-5 * 0.7**2 lie a few units of the last binary place off the decimal half that is meant.
    exact = Decimal(f"{exact:.12e}")
    shift = exact.adjusted()
    mantissa = exact.scaleb(-shift).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    if abs(mantissa) >= 10:
        mantissa, shift = (mantissa / 10).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP), shift + 1
    return f"{mantissa}e{shift}"


def comparison(base: float) -> dict[str, CycleLR]:
    """The card's four decay factors from one base."""
    return {
        "constant" if decay == 1 else f"decay {decay:.2f}": CycleLR("constant", base)
        if decay == 1
        else CycleLR("exponential", base, decay)
        for decay in DECAY_NOTES
    }


def rate_table(schedules: Mapping[str, CycleLR], cycles: int) -> str:
    """Every cycle's rate with three digits, a row a schedule, and the sum over cycles in units of the first."""
    heads = [f"cycle {n}" for n in range(1, cycles + 1)]
    rows = [["schedule", *heads, "sum / first"]]
    for name, schedule in schedules.items():
        rates = [scientific(schedule(n), 2) for n in range(1, cycles + 1)]
        rows.append([name, *rates, f"{lr_area(schedule, cycles) / schedule(1):.3f}"])
    return aligned(rows)


def decay_table(base: float) -> str:
    """The card's own table: cycles 1, 3 and 5 with one digit behind the point, and a note."""
    rows = [["decay", "cycle 1", "cycle 3", "cycle 5", ""]]
    for schedule, (decay, note) in zip(comparison(base).values(), DECAY_NOTES.items(), strict=True):
        rows.append([f"{decay:.2f}", *(scientific(schedule(n), 1) for n in (1, 3, 5)), note])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
