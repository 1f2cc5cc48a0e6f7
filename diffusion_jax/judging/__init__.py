"""The classifier that judges generated images, and their quality in its features."""
