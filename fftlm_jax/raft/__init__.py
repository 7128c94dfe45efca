"""RAFT, reward-ranked fine-tuning (Dong et al. 2023, arXiv 2304.06767), with a learning rate per cycle.

Which file answers what: `run_cycles` in which order things happen, `phases` what each one does, `engine` how the model
is trained and sampled, `journal` what is on disk, `cycle_weights` where the run began and what each cycle made of it,
`selection` what is kept and what the next cycle does, `tasks` what is asked and what is right, `cycle_lr` the
schedules, `advise` and `advice_rules` what the numbers suggest, `report` and `cycles_figure` how they are shown.
"""

from fftlm_jax.raft.cycle_lr import KINDS, CycleLR, adapted, lr_area
from fftlm_jax.raft.lr_yaml import from_yaml, to_yaml
