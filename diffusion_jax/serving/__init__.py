"""The REST interface of the explorer: models that are looked at, and the one worker that runs."""
