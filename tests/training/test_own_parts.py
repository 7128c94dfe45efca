"""A mixer and an optimizer from a file of one's own: they are named in a config, and everything works with them."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fftlm_jax.config.limits import parameter_count
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.traits import MIXERS, OPTIMIZERS, MixerTraits, OptimizerTraits
from fftlm_jax.export.exported_model import ExportedConfig
from fftlm_jax.export.model_readme import readme
from fftlm_jax.generation import Decoder, PlainDecoder, SamplingConfig, receptive_field
from fftlm_jax.model import build, init_params
from fftlm_jax.model.layers import Projection
from fftlm_jax.model.mixers import MIXER_MODULES, register_mixer
from fftlm_jax.model.parameters import by_name, group_sizes
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import ConfigError
from fftlm_jax.spectral import no_filter
from fftlm_jax.training import run
from fftlm_jax.training.optimizer import OPTIMIZER_LINKS, OptimizerLinks, register_optimizer
from tests.tiny import hash_of, tiny_values, write_words


class LeakyMean(nnx.Module):
    """A decaying mean of what was heard, per channel: h_t = a h_(t-1) + (1 - a) W z_t."""

    parameter_rules: ClassVar = (("mixer", "w_heard/kernel"), ("gain", "leak"))

    def __init__(self, config, rngs):
        self.w_heard = Projection(config.d_model, config.d_model, 1.0, jnp.dtype(config.dtype), rngs)
        self.leak = nnx.Param(jnp.zeros((config.d_model,)))

    def __call__(self, z_BTD, low_pass):
        return self.extend(self.empty_past(len(z_BTD), None), z_BTD, None)[0]

    def kernels(self, low_pass):
        return None

    @staticmethod
    def at_width(kernels, block):
        return None

    def empty_past(self, batch, kernels):
        return jnp.zeros((batch, self.leak.shape[0], 1))

    def extend(self, past_BD1, z_BSD, prepared):
        a_D = jax.nn.sigmoid(self.leak[...])

        def step(h_BD, u_BD):
            h_BD = a_D * h_BD + (1 - a_D) * u_BD
            return h_BD, h_BD

        _, states_SBD = jax.lax.scan(step, past_BD1[..., 0], self.w_heard(z_BSD).swapaxes(0, 1))
        return states_SBD.swapaxes(0, 1), jnp.concatenate([past_BD1, states_SBD.transpose(1, 2, 0)], axis=-1)


def leaky_faults(model):
    if model.n_layers > 3:
        yield "config.model.n_layers: a leaky mean is for at most 3 layers; lower it."


LEAKY = MixerTraits(
    words="leaky means",
    parameters=lambda m: m.d_model**2 + m.d_model,
    reach=lambda m: float("inf"),
    faults=leaky_faults,
)
SIGN = OptimizerLinks(lambda config, *_: ([optax.scale_by_sign()], []), lambda group: "signs")


@pytest.fixture(autouse=True)
def registered():
    register_mixer("leaky", LeakyMean, LEAKY)
    register_optimizer("sign", SIGN, OptimizerTraits())
    yield
    for table, name in ((MIXER_MODULES, "leaky"), (MIXERS, "leaky"), (OPTIMIZER_LINKS, "sign"), (OPTIMIZERS, "sign")):
        del table[name]


def values(tmp_path, **overrides):
    write_words(tmp_path / "corpus.txt")
    own = {
        "model__n_layers": 2,
        "model__mixer": "leaky",
        "optim__name": "sign",
        "curriculum__rule": "none",
        "lr__base": 3e-3,
    }
    return tiny_values(data__path=str(tmp_path / "corpus.txt"), train__epochs=3, **(own | overrides))


def test_they_train_and_a_resumed_run_is_the_same(tmp_path, capsys):
    settings = values(tmp_path)
    result = run(settings, tmp_path / "whole")
    assert result["bpb"] < 7.5
    out = capsys.readouterr().out
    assert "optimizer: signs for gain (32), mixer (512)" in out
    faults.arm("stop@mid_step:9")
    with pytest.raises(faults.Stopped):
        run(settings, tmp_path / "halves")
    run(settings, tmp_path / "halves")
    assert hash_of(tmp_path / "halves") == hash_of(tmp_path / "whole")


def test_its_parameters_are_counted_and_sorted(tmp_path):
    model = read_config(values(tmp_path)).model
    params = build(model)[1]
    assert parameter_count(model) == sum(leaf.size for leaf in by_name(params, "/").values())
    assert group_sizes(params)["mixer"] == 2 * 16**2 and receptive_field(model) == float("inf")


def test_it_decodes_what_the_full_forward_pass_says(tmp_path):
    model = read_config(values(tmp_path)).model
    graph, params, greedy = build(model)[0], init_params(model, 1), SamplingConfig(temperature=0.0)
    cached, plain = (kind(model, graph, no_filter(32)) for kind in (Decoder, PlainDecoder))
    texts = [decoder.generate(params, [b"ab"], 20, greedy) for decoder in (cached, plain)]
    assert texts[0] == texts[1] and len(set(texts[0][0])) > 1
    tokens = np.random.default_rng(0).integers(0, 256, (1, 32))
    hidden = [nnx.merge(graph, params)(jnp.asarray(t), no_filter(32)) for t in (tokens, tokens ^ (np.arange(32) > 20))]
    np.testing.assert_array_equal(hidden[0][:, :21], hidden[1][:, :21])


def test_its_limits_and_names_speak_where_those_of_the_others_do(tmp_path):
    with pytest.raises(ConfigError, match="a leaky mean is for at most 3 layers"):
        read_config(values(tmp_path, model__n_layers=4))
    with pytest.raises(ConfigError, match="mixer 'leaky' has none"):
        read_config(values(tmp_path, curriculum__rule="plateau"))
    with pytest.raises(ConfigError, match="must be one of convolution, attention, leaky .did you mean 'leaky'"):
        read_config(values(tmp_path, model__mixer="leeky"))
    with pytest.raises(ValueError, match="there is a mixer 'leaky' already"):
        register_mixer("leaky", LeakyMean, LEAKY)
    config = read_config(values(tmp_path))
    assert "layers of causal\nleaky means" in readme(ExportedConfig(1, "raw", config.model, no_filter(32)), 5, False)
