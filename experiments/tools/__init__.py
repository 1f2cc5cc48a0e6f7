"""For maintainers: speed, compiled programs, kills."""
