"""What the source card (LR quick reference) advises, in our words, and what is known against it."""

from experiments.lr_tables import aligned, decay_table, scientific

_TEXT = """\
HYPOTHESES OF THE SOURCE CARD, NOT FINDINGS. What came of them here, on tiny models, is in experiments/CLAIMS.md: its
absolute rates and the quarter lost, 0.85 did well, nothing was seen that decay would have prevented.

Starting points
{starts}
Rule of thumb: the RAFT rate is a quarter of the SFT rate ({base} is a quarter of {sft}). Absolute values do not carry
over to other models: here a base is better given as a ratio of the SFT rate.

Decay over five cycles from {base}
{decays}
Of these only 0.85 ends in the card's own range for cycle 5 of a base of 5.0e-5. No decay factor changes cycle 1, so
decay cannot cure what goes wrong in it.

Decision tree
  Begin with {base} and decay 0.85 (elsewhere the card says: with the constant baseline).
    The loss oscillates or gets worse -> reduce: decay 0.70, or a lower base.
    The loss is flat, no improvement  -> increase: base {higher}, or decay 0.95.

Signs of a rate too high                        Signs of a rate too low
  the training loss spikes or oscillates          the training loss hardly moves
  validation rises while training falls           several cycles with the same verification rate
  the gradient norm is often at its limit         gradient norms below 0.05
  a cycle is worse than the one before            it feels like wasted compute
  generated text repeats itself

If you change ...        the rate may need to be ...
  LoRA rank, up            slightly lower (contested: with the scale alpha/r it is nearly independent of rank)
  batch size, up           slightly higher
  temperature, up          possibly slightly higher
  less data                lower: there is less signal

Remember
  1. These are hypotheses.              2. Start from a baseline, then follow what you see.
  3. Log everything.                    4. Change one thing at a time.
  5. Watch the held-out verification rate: a loss also falls when a filter keeps samples at random.
"""


def recommendations(base: float) -> str:
    """The advice for a base learning rate of cycle 1."""
    sft = 4 * base
    starts = aligned(
        [
            ["phase", "learning rate", "confidence, says the card"],
            ["SFT (LoRA)", scientific(sft, 1), "high"],
            ["RAFT, cycle 1", scientific(base, 1), "medium"],
            ["RAFT, cycle 5", f"{scientific(0.4 * base, 1)} to {scientific(0.6 * base, 1)}", "low"],
        ]
    )
    numbers = {"base": scientific(base, 1), "sft": scientific(sft, 1), "higher": scientific(1.4 * base, 1)}
    return _TEXT.format(starts=starts, decays=decay_table(base), **numbers)
