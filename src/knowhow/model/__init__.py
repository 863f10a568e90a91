"""Models: the guard, loading and saving, heads, adapters, vocabulary, inference and generation."""
