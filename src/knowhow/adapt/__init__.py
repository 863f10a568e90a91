"""The objectives: what a phase of the loop minimises."""
