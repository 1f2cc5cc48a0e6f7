"""A program compiled for a GPU that need not be there, and what it consists of."""
