"""Experiments on the package: benchmarks, sweeps and their findings (LOG.md)."""
