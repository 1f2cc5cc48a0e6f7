"""What is measured along time, and the times that it defines: one table, `OBSERVABLES`.

A line of it is all that a measure needs: its curve is then among `Regimes.curves` and in
result.json, and its times are among `Regimes.times`, in result.json and in the printed table. With
n training points, d dimensions and alpha = log(n)/d (n is `TrainingSet.num_points`: with a symmetry
it counts the points of the orbit, and phi_C is about ending in the same one of these):

    phi              probability that two clones forked at t end in the same class, E sum_c p_c^2;
                     of the draws from a single class c, that a clone ends in it, E p_c
    excess_entropy   f^e(t)/alpha, which is the posterior's entropy over log n
    phi_C            probability that two clones end in the same training point, E sum_nu p_nu^2
    leave_one_out    f_loo(t)/alpha = E log((1 - p_mu)/p_mu)/log n
    class_entropy    H(c | x_t), the entropy of p(c | x_t), in nats
    class_information
                     I(c; x_t) = H(c) - H(c | x_t), what x_t says of its class, in nats
    class_rate       -dI(c; x_t)/dt, in nats per unit of Ornstein-Uhlenbeck time
    point_information
                     I(a; x_t) = log n - E H(p(. | x_t)), what x_t says of its point, in nats; where
                     points coincide it tends to the entropy of the distinct ones
    effective_points exp E H(p(. | x_t)), the effective number of points behind x_t
    largest_weight   E max_nu p(nu | x_t)

With e(x) the noise that the exact score predicts and e(x | c) that of the class's points alone,

    -dI(c; x_t)/dt = E |e(x_t | c) - e(x_t)|^2/Delta_t,    c the class of a_mu,

the square of the vector that guidance adds (2602.09651; by dI(a; x_t)/dg = 1/2 E |a - D|^2 of Guo,
Shamai and Verdu 2005, for all points minus that for each class, g = e^-2t/Delta_t). It is g |D_c -
D|^2, D the posterior's mean, and needs no such mean: since a_mu given x_t is a draw from the
posterior, E |a_mu - a_nu|^2 = 2 E |a_mu - D|^2 for nu drawn from it too, and so

    E |D_c - D|^2 = E |a_mu - D|^2 - E |a_mu - D_c|^2 = 1/2 E [S - S_c],
    S = sum_nu p(nu | x_t) |a_mu - a_nu|^2,    S_c the same over p(nu | x_t, c)   (derived here).

Where the rate peaks its variance is half of that of the vector's square itself, on digits and on
mixtures of Gaussians; far above the peak, where there is little to see, it is many times that.
"""

import math

import numpy as np

from diffusion_jax.regimes.observables import Ensemble, Level, Observable

# (phi - floor)/(1 - floor) at phi = 0.7752, the value for two Gaussians at s = 1.
SPECIATION_LEVEL = 0.5504
# f^e/alpha at the collapse of Gaussian mixtures: see experiments.paper.collapse_definitions.
ENTROPY_LEVEL = 0.12
# phi_C at the collapse.
COLLAPSE_LEVEL = 0.5


def _same_class(ensemble: Ensemble) -> np.ndarray:
    p = ensemble.class_probability
    return np.asarray(np.sum(p * p, axis=2) if ensemble.label is None else p[..., ensemble.label])


def _speciation_level(ensemble: Ensemble) -> float:
    return ensemble.floor + (1 - ensemble.floor) * SPECIATION_LEVEL


def _class_entropy(ensemble: Ensemble) -> np.ndarray:
    p = ensemble.class_probability
    return np.asarray(-np.sum(p * np.log(np.maximum(p, 1e-38)), axis=2))


def _class_information(ensemble: Ensemble, average: np.ndarray) -> np.ndarray:
    return ensemble.class_entropy - average


def _class_rate(ensemble: Ensemble) -> np.ndarray:
    draws, p = ensemble.draws, ensemble.class_probability
    own = np.take_along_axis(draws.squared, draws.labels[:, None, None], axis=2)[..., 0]
    apart = np.zeros_like(own)  # S - S_c, to which the class itself adds nothing
    for label in range(p.shape[2]):
        apart += p[..., label] * (draws.squared[..., label] - own)
    noise = -np.expm1(-2 * draws.times)
    return apart * (np.exp(-2 * draws.times) / (2 * noise**2)).astype(apart.dtype)


def _same_point(ensemble: Ensemble) -> np.ndarray:
    return ensemble.draws.collision


def _excess_entropy(ensemble: Ensemble) -> np.ndarray:
    return ensemble.draws.entropy / ensemble.log_n


def _leave_one_out(ensemble: Ensemble) -> np.ndarray:
    return ensemble.draws.log_others / ensemble.log_n


def _effective_points(ensemble: Ensemble, average: np.ndarray) -> np.ndarray:
    return np.exp(average * ensemble.log_n)


def _point_information(ensemble: Ensemble, average: np.ndarray) -> np.ndarray:
    return (1 - average) * ensemble.log_n


def _largest_weight(ensemble: Ensemble) -> np.ndarray:
    return ensemble.draws.largest


OBSERVABLES: dict[str, Observable] = {
    "phi": Observable(
        "φ: same class",
        _same_class,
        falls=True,
        needs_classes=True,
        accurate=True,
        times={
            "t_S_phi": Level(
                _speciation_level,
                "phi = {level:.3f}",
                "$t_S$ (φ)",
                f"{100 * SPECIATION_LEVEL:.0f} % from floor to 1",
            )
        },
    ),
    "class_entropy": Observable("H(c | x$_t$)", _class_entropy, needs_classes=True),
    "class_information": Observable(
        "I(c; x$_t$)",
        _class_entropy,
        falls=True,
        needs_classes=True,
        of_all=True,
        link=_class_information,
    ),
    "class_rate": Observable(
        "-dI(c; x$_t$)/dt",
        _class_rate,
        needs_classes=True,
        of_all=True,
        times={"t_S_rate": Level(math.nan, "peak of -dI/dt", "$t_S$ (rate)")},
    ),
    "excess_entropy": Observable(
        r"$f^e/\alpha$: entropy of the posterior",
        _excess_entropy,
        accurate=True,
        times={
            "t_C_entropy": Level(
                ENTROPY_LEVEL,
                "f^e = {level:g} alpha",
                "$t_C$ ($f^e$)",
                defined=rf"$t_C$ ($f^e = {ENTROPY_LEVEL}\alpha$)",
            ),
        },
    ),
    "phi_C": Observable(
        "φ$_C$: same training image",
        _same_point,
        falls=True,
        accurate=True,
        times={
            "t_C_phi": Level(
                COLLAPSE_LEVEL, "phi_C = 1/2", "$t_C$ (φ$_C$)", defined="$t_C$ (φ$_C$ = ½)"
            ),
            "t_C_phi_60": Level(0.6, "phi_C = 0.6", "$t_C$ (φ$_C$ = 0.6)"),
        },
    ),
    "leave_one_out": Observable(
        r"$f_{loo}/\alpha$",
        _leave_one_out,
        times={"t_C_leave_one_out": Level(0.0, "f_loo = 0", "$t_C$ ($f_{loo}$ = 0)")},
    ),
    "point_information": Observable(
        "I(a; x$_t$)", _excess_entropy, falls=True, link=_point_information
    ),
    "effective_points": Observable("exp H", _excess_entropy, link=_effective_points),
    "largest_weight": Observable("largest weight", _largest_weight, falls=True),
}


def level_of(time: str) -> tuple[str, Level]:
    """The observable that defines a time, by its name, and the level that it crosses there."""
    found = ((name, each.times[time]) for name, each in OBSERVABLES.items() if time in each.times)
    return next(found)


def known(num_classes: int) -> dict[str, Observable]:
    """The observables that data with this number of classes have."""
    return {
        name: each
        for name, each in OBSERVABLES.items()
        if num_classes > 1 or not each.needs_classes
    }
