"""As close to the original program as its documents state it: a plain block, one scored chunk a window, a signal mask.

    python main.py --config=configs/original_block.py --workdir=runs/original --config.data.path=corpus.txt

The block is one kernel for all channels and a gain, with no projections and no gate; the kernel's parameters are its
taps; the only bytes trained on are the sixteen after a window (64 times less supervision for the same forward pass);
the cutoff zeroes rfft bins of the padded signal, which sees the future inside the window and is harmless only because
nothing is scored there; and a raise sets the learning rate to its peak for one step.
Expected result: not known at this size. A small twin is compared with that of `aligned` in experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs import aligned


def get_config() -> ConfigDict:
    c = aligned.get_config()
    c.model.update(conv_heads=1, projections=False, kernel_basis="taps")
    c.objective.update(positions="last", next_byte_weight=0.0)
    c.curriculum.method = "signal"
    c.lr.restart = "pulse"
    return c
