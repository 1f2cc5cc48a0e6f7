"""Every figure, one file per subject."""
