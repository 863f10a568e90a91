"""Measurements of the untouched base on a task, one kind per file; no weight is left changed. Laws turn them into predictions."""
