"""Mathematics that several stages share: statistics, losses. Pure functions with shape letters."""
