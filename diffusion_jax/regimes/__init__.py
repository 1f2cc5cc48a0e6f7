"""When a backward process commits: speciation, collapse, and what they follow from."""
