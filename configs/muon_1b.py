"""A model of 1.1 billion parameters under Muon, for the question whether a radial component gains at scale.

    python main.py --config=configs/muon_1b.py --workdir=runs/muon_1b --config.data.path=corpus.txt
    fftlm plan configs/muon_1b.py --target=v5e-16 --config.mesh.fsdp=16 --config.model.remat=blocks

Compiled for TPU and GPU by `fftlm plan`; never trained here. Expected result: not known. It wants accelerators: 9 GB
of weights and optimizer state in float32 (weights, and one momentum each for Muon), and as much again for gradients
and updates. A micro-batch has 16 windows, so that up to 16 devices share it.
"""

from ml_collections import ConfigDict

from configs import muon_spectral


def get_config() -> ConfigDict:
    c = muon_spectral.get_config()
    c.model.update(d_model=2048, n_layers=36, conv_heads=32, dtype="bfloat16")
    c.train.update(batch_size=16, accum_steps=2)
    return c
