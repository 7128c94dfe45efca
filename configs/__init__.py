"""Configs. `aligned.py` holds every key; the others start from it."""
