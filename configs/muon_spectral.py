"""`aligned` with Muon for the matrices of the blocks, and a tenth of the radial component given back.

    python main.py --config=configs/muon_spectral.py --workdir=runs/muon --config.data.path=corpus.txt

`optim.spectral_lr=0.1` is what the source document recommends, for gradients of a loss summed over tokens; the
scale-free form used here has no such units. 0 is Muon. What a small model says about it: experiments/LOG.md.
Expected result: not known at this size, for the reason that `aligned` gives.
"""

from ml_collections import ConfigDict

from configs import aligned


def get_config() -> ConfigDict:
    c = aligned.get_config()
    c.optim.update(name="muon", spectral_lr=0.1, spectral_normalize="frobenius", weight_decay=0.01)
    c.lr.base = 0.02
    return c
