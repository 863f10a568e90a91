"""Specialists at work on cases of a domain."""
