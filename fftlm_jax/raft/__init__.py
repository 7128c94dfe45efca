"""RAFT, reward-ranked fine-tuning (Dong et al. 2023, arXiv 2304.06767): so far, the learning rate of its cycles."""

from fftlm_jax.raft.cycle_lr import KINDS, CycleLR, adapted, lr_area
from fftlm_jax.raft.lr_yaml import from_yaml, to_yaml
