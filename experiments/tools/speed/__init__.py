"""How fast: programs, turns, ratios and their tables."""
