"""What a denoiser is: anything that predicts the noise in x_t."""

from typing import Protocol

from jax import Array


class Denoiser(Protocol):
    """A noise predictor, eps(x_t, s).

    To be compiled with its arrays as arguments, not as constants, a denoiser is a pytree too: see
    `TrainedDenoiser`.
    """

    def __call__(self, x: Array, step: Array) -> Array:
        """Predicts the noise.

        Args:
          x: noisy data (batch, ...), at the noise level of `step`.
          step: integer steps s in 0..L-1, shape (batch,).

        Returns:
          Predicted noise, shape of x. The score is -noise / sqrt(1 - alpha_bar_s).
        """
