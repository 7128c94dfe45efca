"""Byte-level language models that mix time by causal long convolutions, under a frequency curriculum."""

import os
import tempfile

__version__ = "0.1.0"

try:
    tempfile.gettempdir()
except FileNotFoundError:  # No folder for temporary files: some libraries ask for its name when they are imported.
    tempfile.tempdir = os.environ.get("TMPDIR") or "/tmp"
