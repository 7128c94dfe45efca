"""`aligned` with the next-byte objective alone: the plain language model of the same size.

    python main.py --config=configs/next_byte.py --workdir=runs/next_byte --config.data.path=corpus.txt

Expected result: not known, for the reason that `aligned` gives.
"""

from ml_collections import ConfigDict

from configs import aligned


def get_config() -> ConfigDict:
    c = aligned.get_config()
    c.objective.name = "next_byte"
    c.model.chunk = 1  # One slice of the head; there is nothing to learn for the other fifteen.
    return c
