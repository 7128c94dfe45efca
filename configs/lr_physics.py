"""The learning-rate document's setup: one raise from 128 to 512, found within an epoch, and answered by half the LR.

    python main.py --config=configs/lr_physics.py --workdir=runs/lr_physics --config.data.path=corpus.txt

Its own log goes from 1.8e-4 to 1.0e-4 at the raise: a restart to the peak *and* half of it.
Halving lost clearly to a restart alone in small trials (experiments/CLAIMS.md); `--config.lr.factor=1.0` is that.
Expected result: not known, for the reason that `aligned` gives.
"""

from ml_collections import ConfigDict

from configs import aligned


def get_config() -> ConfigDict:
    c = aligned.get_config()
    c.curriculum.update(ladder=(128, 512), check_every=10)
    c.lr.update(restart="tooth", factor=0.5)
    return c
