"""What a rule says: a finding with its numbers and, where one follows from it, a change."""

from typing import NamedTuple


class Sign(NamedTuple):
    """What a rule found in the newest cycle."""

    rule: str
    found: str
    evidence: dict[str, float]
    remedy: str = ""  # What the change is, as a sentence without its label; empty where the rule asks for none.
    change: str = ""  # By config key.
    lr_factor: float = 1.0
    first_cycle: int = 1
