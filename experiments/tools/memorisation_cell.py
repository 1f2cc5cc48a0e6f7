"""Trains one run of a study: python -m experiments.tools.memorisation_cell RUN_DIR.

It goes by the folder's config.json. The study that starts it holds the other end of its standard
input: when the study is gone, however it went, the run saves itself and stops.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from diffusion_jax.training import loop, saved_config
from experiments.command import reports_errors, start


def _stop_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@reports_errors
def main() -> None:
    """Trains until all is done, or nobody waits for it."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    start()
    loop.train(saved_config.read(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
