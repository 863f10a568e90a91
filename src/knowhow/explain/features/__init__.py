"""Sparse dictionaries of what a site holds: learned in the one loop, measured beside neurons, tested by taking features out."""
