"""Plans a run for a machine that is not there: compiles its real programs for it, and says what they need."""
