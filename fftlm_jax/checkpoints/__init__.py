"""Saved steps on disk: written, checked against their manifests, read, and started from."""
