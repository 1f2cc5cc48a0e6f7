"""A run compared with theories: where from, cell by cell, and in samples from one seed."""
