"""Runs that can refute a law: small systems (a model, rows, an objective) by name, and the one function that runs an experiment and has it scored."""
