"""knowhow: turn a base language model into an expert, and know how it works."""

__version__ = "0.1.0"
