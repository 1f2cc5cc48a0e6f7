"""What tests of the explorer's page share."""

from pages import browser, opened, server  # noqa: F401  (fixtures)
