"""A run compared with theories: on which images, cell by cell, and in samples from one seed."""
