"""The rules of the advisor, pure functions of the cycles so far. Which of them may change something, it decides."""

from fftlm_jax.raft.rules.changes import Knobs
from fftlm_jax.raft.rules.data import narrows, no_lr_question
from fftlm_jax.raft.rules.flat import finds_but_seldom, hardly_learns, is_solved
from fftlm_jax.raft.rules.sign import Sign
from fftlm_jax.raft.rules.too_high import clipped, fell_from_best, gold_loss_rises, loss_is_rough

RULES = (  # R0 to R8.
    no_lr_question,
    fell_from_best,
    gold_loss_rises,
    loss_is_rough,
    clipped,
    narrows,
    hardly_learns,
    finds_but_seldom,
    is_solved,
)
