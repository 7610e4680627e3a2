"""How long the stack takes to come up, beside the same programs started by hand: ``python -m benchmarks``."""
