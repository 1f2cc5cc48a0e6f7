"""What is measured along time, and the times that it defines: one table, `OBSERVABLES`.

A line of it is all that a measure needs: its curve is then among `Regimes.curves` and in
result.json, and its times are among `Regimes.times`, in result.json and in the printed table. With
n training points, d dimensions and alpha = log(n)/d (n is `TrainingSet.num_points`: with a symmetry
that of the points of the orbit, and phi_C that of the same one of them):

    phi              probability that two clones forked at t end in the same class, E sum_c p_c^2;
                     of the draws from a single class c, that a clone ends in it, E p_c
    excess_entropy   f^e(t)/alpha, which is the posterior's entropy over log n
    phi_C            probability that two clones end in the same training point, E sum_nu p_nu^2
    leave_one_out    f_loo(t)/alpha = E log((1 - p_mu)/p_mu)/log n
    class_entropy    entropy of p(c | x_t) in nats
    effective_points exp E H(p(. | x_t)), the effective number of points behind x_t
"""

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


def _same_point(ensemble: Ensemble) -> np.ndarray:
    return ensemble.draws.collision


def _excess_entropy(ensemble: Ensemble) -> np.ndarray:
    return ensemble.draws.entropy / ensemble.log_n


def _leave_one_out(ensemble: Ensemble) -> np.ndarray:
    return ensemble.draws.log_others / ensemble.log_n


def _effective_points(ensemble: Ensemble, average: np.ndarray) -> np.ndarray:
    return np.exp(average * ensemble.log_n)


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
                f"{100 * SPECIATION_LEVEL:.0f} % above floor",
            )
        },
    ),
    "excess_entropy": Observable(
        r"$f^e/\alpha$: entropy of the posterior",
        _excess_entropy,
        accurate=True,
        times={
            "t_C_entropy": Level(ENTROPY_LEVEL, "f^e = {level:g} alpha", "$t_C$ (f$^e$)"),
        },
    ),
    "phi_C": Observable(
        "φ$_C$: same training image",
        _same_point,
        falls=True,
        accurate=True,
        times={
            "t_C_phi": Level(COLLAPSE_LEVEL, "phi_C = 1/2", "$t_C$ (φ$_C$)"),
            "t_C_phi_60": Level(0.6, "phi_C = 0.6", "$t_C$ (φ$_C$ = 0.6)"),
        },
    ),
    "leave_one_out": Observable(
        r"$f_{loo}/\alpha$",
        _leave_one_out,
        times={"t_C_leave_one_out": Level(0.0, "f_loo = 0", "$t_C$ ($f_{loo}$ = 0)")},
    ),
    "class_entropy": Observable("entropy of the class", _class_entropy, needs_classes=True),
    "effective_points": Observable("exp H", _excess_entropy, link=_effective_points),
}


def level_of(time: str) -> tuple[str, Level]:
    """The observable that defines a time, by its name, and the level that it crosses there."""
    found = ((name, each.times[time]) for name, each in OBSERVABLES.items() if time in each.times)
    return next(found)


def known(num_classes: int) -> dict[str, Observable]:
    """The observables that data of so many classes have."""
    return {
        name: each
        for name, each in OBSERVABLES.items()
        if num_classes > 1 or not each.needs_classes
    }
