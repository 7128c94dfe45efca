"""The config of a run: its schema, the rules between keys, and the reader. No JAX."""

from fftlm_jax.config.reading import differences, read_config, read_model_config, to_dict
from fftlm_jax.config.schema import Config, ModelConfig, ObjectiveConfig, rule_in_force
