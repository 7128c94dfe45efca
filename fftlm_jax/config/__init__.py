"""The config of a run: its schema, the rules between keys, and the reader. No JAX."""
