"""The published numbers that experiments are compared with (published.json)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.schedule import linear_schedule

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published.json").read_text())


def speciation_curve(name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """A published phi(t): times, phi, and the published t_S = 1/2 log Lambda.

    A published branch label b means that the steps L-1..b are shared: the state at the fork is at
    alpha_bar_{b-1}.

    Args:
      name: of the data set, such as "MNIST".
    """
    curve = PUBLISHED["speciation_cloning"][name]
    times = np.asarray(linear_schedule(1000).time, np.float64)[np.array(curve["step"]) - 1]
    return times, np.array(curve["phi"]), float(PUBLISHED["table1"][name][3])
