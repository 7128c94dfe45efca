"""What `fftlm_jax.evaluate` reports beside held-out losses: what context is worth, and what generated text is like."""
