"""`aligned` with rotary causal attention in place of the convolutions, at the same number of parameters.

    python main.py --config=configs/attention.py --workdir=runs/attention --config.data.path=corpus.txt

Attention has four matrices where the convolution mixer has three; a feed-forward layer of 1.5 instead of 2 widths
makes up for it, to within the kernels. There are no kernels to limit, so there is no curriculum.
Expected result: not known at this size. A small twin is compared with that of `aligned` in experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs import aligned


def get_config() -> ConfigDict:
    c = aligned.get_config()
    c.model.update(mixer="attention", ffn_mult=1.5)
    c.curriculum.rule = "none"
    return c
