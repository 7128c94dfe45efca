"""What the rules between config keys must know of an optimizer.

An optimizer is one entry here and one in `training/optimizer.py`, whose `register_optimizer` adds one from elsewhere.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class OptimizerTraits:
    """Facts of an optimizer.

    Attributes:
        keys: those of section `optim` that it alone looks at; they must be neutral under another one.
        needs_matrices: whether it has nothing to do where no matrix of a block is trained: under a frozen backbone, or
            where adapters are.
        depends_on_length: whether its update depends on how many steps there will be.
    """

    keys: tuple[str, ...] = ()
    needs_matrices: bool = False
    depends_on_length: bool = False


OPTIMIZERS: dict[str, OptimizerTraits] = {
    "adamw": OptimizerTraits(),
    "muon": OptimizerTraits(keys=("spectral_lr", "brake", "neuron_beta2"), needs_matrices=True, depends_on_length=True),
}
