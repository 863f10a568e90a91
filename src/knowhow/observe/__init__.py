"""Observers: look at a run, never touch it. One per file."""
