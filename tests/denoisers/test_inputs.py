"""What a score in closed form does not take is refused, where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers import DENOISERS, EmpiricalDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.symmetry import Group

SHAPE = (3, 2, 1)
POINTS = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float32)
X, STEP = POINTS[:2], np.array([0, 29])


@pytest.fixture(scope="module", params=["exact", "exact with a group", "gaussian", "classes"])
def denoiser(request):
    schedule = linear_schedule(30)
    if request.param == "exact with a group":
        return EmpiricalDenoiser(schedule, jnp.asarray(POINTS), Group.flip())
    return DENOISERS[request.param](schedule, POINTS, np.arange(8) % 2)


@pytest.mark.parametrize(
    ("x", "step", "message"),
    [
        (np.zeros((2, *SHAPE), np.int32), STEP, "noisy data of type int32: give floats"),
        (X[:, :2], STEP, r"shape \(2, 2, 2, 1\), but the training points are of shape \(3, 2, 1\)"),
        (X.reshape(2, 6), STEP, r"noisy data of shape \(2, 6\), but the training points"),
        (X, STEP.astype(np.float32), "steps of type float32: give integers"),
        (X, STEP + 1, r"steps from 1 to 30 are not all in 0\.\.29, those of the schedule"),
        (X, jnp.asarray(STEP - 1), r"steps from -1 to 28 are not all in 0\.\.29"),
    ],
    ids=["integers", "shape", "flat", "float steps", "late", "early"],
)
def test_what_a_closed_form_is_called_with(denoiser, x, step, message):
    others = ("class_log_probability", "posterior")
    for use in (denoiser, *(getattr(denoiser, each) for each in others if hasattr(denoiser, each))):
        with pytest.raises(UserError, match=message):
            use(x, step)
    if "not all in" not in message:  # steps are not known there
        with pytest.raises(UserError, match=message):
            jax.eval_shape(denoiser, x, step)


def test_compiled_code_may_hold_any_step(denoiser):
    assert jax.eval_shape(denoiser, X, STEP + 7).shape == X.shape


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((3, 4), int), r"training points of shape \(3, 4\) and type int.*: give floats"),
        (np.zeros((0, 4)), r"training points of shape \(0, 4\) and type float64: .*one point"),
        (np.zeros(4), r"training points of shape \(4,\)"),
        (np.array([[1.0], [np.nan]]), "training point 1 holds values that are not finite"),
        (np.array([[np.inf], [1.0]]), "training point 0 holds values that are not finite"),
    ],
    ids=["integers", "none", "one number each", "nan", "infinite"],
)
def test_points_that_make_no_exact_score(points, message):
    with pytest.raises(UserError, match=message):
        EmpiricalDenoiser.fit(linear_schedule(30), points, None)
