"""What every part needs of the process: errors, exit codes, signals, flags, untrusted input, injected faults."""
