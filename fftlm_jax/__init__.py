"""Byte-level language models that mix time by causal long convolutions, under a frequency curriculum."""

__version__ = "0.1.0"
