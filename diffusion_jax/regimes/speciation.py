"""When the backward process chooses between any two classes: the Bayes criterion.

With u(x) = log P_t(x|1) - log P_t(x|2), the free-entropy difference of two classes at time t, let

    D_1 = E_1[u],   V_1 = Var_1[u],   D_2 = E_2[-u],   V_2 = Var_2[u].

Class c is told from the other once its mean difference outgrows its fluctuation, D_c > sqrt(V_c):
its speciation time t_rs is the largest root of D_c^2 = V_c (the criterion of Achilli, Benedetti,
Biroli & Mezard 2026, arXiv:2602.04404; the formulas are this project's). It needs neither means
that differ nor a dominant eigenvalue. Where u is Gaussian, V = 2D, because E_1[exp(-u)] = 1; then
the probability that two clones end in one class is phi = 1/2 (1 + E tanh(s + sqrt(s) z)) with
s = D/2, so that t_rs is s = 1 and phi = 0.7752: the criterion of Biroli et al. (2024).

Unequal weights. By default u compares the laws of the classes alone, whatever their weights. With
`log_odds` = log(pi_1/pi_2) added, u becomes the log-odds of the posterior, D_1 grows and D_2
shrinks by log_odds, and both keep a finite limit at large t; t_rs is then the largest time at which
D/sqrt(V) rises through 1 as t falls. (For equal weights that is the largest root.) A class whose
prior alone keeps D above sqrt(V) has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage, to_tree
from scipy.spatial.distance import squareform
from scipy.special import logsumexp

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.posterior import Draws

_INTERVAL = (0.025, 0.975)


def signal_to_noise(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """D/sqrt(V); where V = 0, the sign of D times infinity, and 0 for classes that are the same."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mean == 0, 0.0, mean / np.sqrt(variance))


@dataclass(frozen=True)
class Separation:
    """The criterion along time for one pair of classes, from data; index c is class 1, class 2.

    Attributes:
      times: increasing Ornstein-Uhlenbeck times (T,).
      mean: D_c(t) in nats (2, T).
      variance: V_c(t) in nats squared (2, T).
      time: t_rs of both classes with 95 % intervals, which cover the draws, not the choice of the
        training points. NaN where D_c < sqrt(V_c) at every time given, and for a bound below them.
    """

    times: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    time: tuple[Estimate, Estimate]


def log_ratio(
    draws: Draws, counts: np.ndarray, first: Sequence[int], second: Sequence[int]
) -> np.ndarray:
    """The free-entropy difference u of two sets of classes, from the posterior engine.

    u = log P_t(x|S_1) - log P_t(x|S_2)

    P_t(x|S) is the mean of N(x; e^-t a_nu, Delta_t I) over the training points nu in S except for
    the point mu that x started from, which would pull its own class below the collapse:

    log P_t(x|S) = log sum_{c in S} exp(log_evidence_c) - log(sum_{c in S} n_c - [mu in S]) + const.

    So the classes within S weigh as many points as they have, and S_1 and S_2 weigh the same.

    Args:
      draws: the engine's pass over the training points.
      counts: number of training points of each class n_c (C,).
      first: classes in S_1.
      second: classes in S_2, none of them in S_1.

    Returns:
      u in nats (N, T), at all draws, those of other classes included.

    Raises:
      UserError: a set is empty, shares a class with the other, or has fewer than two points.
    """
    if not len(first) or not len(second) or set(first) & set(second):
        raise UserError(f"{list(first)} and {list(second)} are not two separate sets of classes")
    sides = []
    for side in (list(first), list(second)):
        points = int(np.sum(counts[side]))
        if points < 2:
            raise UserError(f"classes {side} have {points} points, and the criterion needs two")
        own = np.isin(draws.labels, side)
        total = logsumexp(draws.log_evidence[..., side], axis=-1)
        sides.append(total - np.log(points - own)[:, None])
    return np.asarray(sides[0] - sides[1])


def _largest_crossing(times: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Largest time at which D/sqrt(V) (..., T) falls through 1; -inf where it does not."""
    falls = (ratio[..., :-1] >= 1) & (ratio[..., 1:] < 1)
    last = falls.shape[-1] - 1 - np.argmax(falls[..., ::-1], axis=-1)
    above = np.take_along_axis(ratio, last[..., None], -1)[..., 0]
    below = np.take_along_axis(ratio, last[..., None] + 1, -1)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        root = times[last] + (above - 1) / (above - below) * (times[last + 1] - times[last])
    return np.where(falls.any(axis=-1), root, -np.inf)


def separation(
    draws: Draws,
    counts: np.ndarray,
    first: Sequence[int],
    second: Sequence[int],
    log_odds: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
) -> Separation:
    """D, V and t_rs of two sets of classes from the training points themselves.

    t_rs is interpolated linearly in D/sqrt(V) between the draws' times, its interval taken from a
    bootstrap over draws. With n points in d dimensions P_t(x|c) is a sum of n Gaussians: below the
    collapse, where one of them outweighs all others, u compares the nearest points of the classes
    and no longer their laws.

    Args:
      draws: the engine's pass over the training points.
      counts: number of training points of each class (C,).
      first: classes in S_1.
      second: classes in S_2.
      log_odds: log(pi_1/pi_2), added to u, where the sets' weights are to count.
      resamples: number of bootstrap samples.
      seed: of the bootstrap.

    Raises:
      UserError: see `log_ratio`; draws missing at some times; fewer than two draws of a set; or
        t_rs beyond the largest time.
    """
    if np.isnan(draws.entropy).any():
        raise UserError(
            "the criterion needs every draw at every time: take them from posterior.draw, not from "
            "transitions.measure"
        )
    order = np.argsort(draws.times)
    times = draws.times[order]
    u = log_ratio(draws, counts, first, second)[:, order] + log_odds
    rng = np.random.default_rng(seed)
    means, variances, found = [], [], []
    for side, sign in ((list(first), 1), (list(second), -1)):
        own = sign * u[np.isin(draws.labels, side)]
        n = len(own)
        if n < 2:
            raise UserError(f"classes {side} have {n} draws, and the criterion needs two")
        mean, variance = own.mean(axis=0), own.var(axis=0, ddof=1)
        ratio = signal_to_noise(mean, variance)
        if ratio[-1] >= 1 and not log_odds:
            raise UserError(
                f"classes {list(first)} and {list(second)} are still apart at t = {times[-1]:.3g}, "
                f"the largest time of the draws; give larger ones"
            )
        weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
        shift = weights @ (own - mean)
        spread = (weights @ (own - mean) ** 2 - shift**2) * n / (n - 1)
        replicas = _largest_crossing(times, signal_to_noise(mean + shift, np.maximum(spread, 0)))
        means.append(mean)
        variances.append(variance)
        ends = np.quantile(replicas, _INTERVAL, method="inverted_cdf")
        values = (float(_largest_crossing(times, ratio)), *(float(end) for end in ends))
        found.append(Estimate(*(value if np.isfinite(value) else np.nan for value in values)))
    return Separation(times, np.array(means), np.array(variances), (found[0], found[1]))


def pairwise(draws: Draws, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """t_rs of every pair of classes.

    Args:
      draws: the engine's pass over the training points.
      counts: number of training points of each class (C,).

    Returns:
      Times (C, C): row a, column b is the time of class a against b, by the draws of a; NaN on the
      diagonal and where there is none. And their 95 % intervals (C, C, 2).
    """
    classes = len(counts)
    times, intervals = np.full((classes, classes), np.nan), np.full((classes, classes, 2), np.nan)
    for a in range(classes):
        for b in range(a + 1, classes):
            pair = separation(draws, counts, [a], [b])
            for (row, column), found in zip(((a, b), (b, a)), pair.time, strict=True):
                times[row, column] = found.value
                intervals[row, column] = found.low, found.high
    return times, intervals


def class_tree(times: np.ndarray) -> np.ndarray:
    """The tree of class mergers, by average linkage of the pairs' times.

    Forwards in time the classes that noise confuses first merge first; backwards the root of the
    tree is the first choice and has the largest time.

    Args:
      times: t_rs of each pair (C, C), of either class; the mean of the two is taken. NaN, for
        classes that are never apart, counts as 0.

    Returns:
      scipy's linkage matrix (C - 1, 4), its heights in Ornstein-Uhlenbeck time.
    """
    both = np.nan_to_num((times + times.T) / 2)
    np.fill_diagonal(both, 0)
    return np.asarray(linkage(squareform(both, checks=False), "average"))


def splits(tree: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """The two sets of classes of each split, in the order of the backward process.

    That is from the tree's last row to its first.
    """
    _, nodes = to_tree(tree, rd=True)
    parted = nodes[len(tree) + 1 :][::-1]
    return [(sorted(n.get_left().pre_order()), sorted(n.get_right().pre_order())) for n in parted]
