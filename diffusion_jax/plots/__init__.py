"""Every figure, one file a subject."""
