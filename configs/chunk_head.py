"""The second program of the documents: the chunk head, trained on the backbone of another run.

    python main.py --config=configs/chunk_head.py --workdir=runs/head --config.init.checkpoint=runs/next_byte

Backbone and head both learn, as in the original. `--config.objective.backbone=frozen` trains the head alone, at the
cutoff that the backbone was saved with. Width, depth, kernels and memory are those of the run it starts from.
Expected result: not known at this size, for the reason that `aligned` gives.
"""

from ml_collections import ConfigDict

from configs import aligned


def get_config() -> ConfigDict:
    c = aligned.get_config()
    c.objective.name = "chunk_head"
    c.train.log_every = 50
    return c
