"""A study of memorisation whose networks compile at once; as a program, the study or a run."""

import sys

import two_convolutions
from unrendered import render_nothing

from diffusion_jax.config import ModelConfig
from diffusion_jax.memorising import workers
from experiments import memorisation
from experiments.tools import memorisation_cell

PROGRAM = ("-m", "small_study", "cell")

if __name__ == "__main__":
    if sys.argv[1] == "cell":
        del sys.argv[1]
        ModelConfig.build = two_convolutions.build
        render_nothing()
        memorisation_cell.main()
    else:
        workers.PROGRAM = PROGRAM
        memorisation.main()
