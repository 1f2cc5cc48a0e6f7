"""The pictures of a data set's regimes, with their captions."""

import math
from collections.abc import Iterator

import numpy as np

from diffusion_jax.data.images import ImageSet
from diffusion_jax.plots import page, regimes
from diffusion_jax.plots.information import draw_information, draw_pair_times
from diffusion_jax.plots.schedules import draw_schedule
from diffusion_jax.regimes.analysis import Analysis, Symmetry
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.measures import level_of


def pictures_of(analysis: Analysis, images: ImageSet) -> Iterator[page.Picture]:
    """The figures that these images have, each with its caption."""
    if analysis.symmetry is not None:
        yield _with_and_without(analysis, analysis.symmetry)
    pixels = images.images
    is_picture = min(pixels.shape[1:3]) > 1 and pixels.shape[3] in (1, 3)
    if analysis.all_channels.Lambda.value > 0:
        yield _spectrum(analysis, pixels.shape[1:] if is_picture else None)
    if "phi" in analysis.overall.curves:
        yield _speciation(analysis)
    yield page.Picture.of(
        "collapse.png",
        regimes.draw_collapse(analysis.overall.curves, analysis.times, analysis.num_points),
        "Above: excess entropy over alpha = log(n)/d, and the probability that two clones end in "
        "the same training point. Below: exp of the posterior's entropy, the effective number of "
        "training points behind x_t. Bands are 95 % intervals. The regimes are parted by "
        "phi_C = 1/2 and by t_S (phi); the other t_C is as good a boundary.",
    )
    yield _information(analysis)
    if analysis.pairs:
        yield _pairs(analysis, images.class_names)
    alone = "" if analysis.symmetry is None else " of the images alone, without the symmetry"
    yield page.Picture.of(
        "lipschitz.png",
        regimes.draw_lipschitz(analysis.lipschitz),
        f"Lipschitz constant of the exact empirical score{alone}. An explicit Euler step eta in "
        "Ornstein-Uhlenbeck time is stable while eta (2/Delta_t - 1) <= 2.",
    )
    if is_picture:
        yield _noisy_samples(images, analysis.times)
    if analysis.schedule is not None:
        yield _schedule(analysis.schedule, analysis.times)


def _with_and_without(analysis: Analysis, symmetry: Symmetry) -> page.Picture:
    return page.Picture.of(
        "symmetry.png",
        regimes.draw_symmetry(analysis.overall, symmetry.without.overall, symmetry.name),
        f"What the symmetry {symmetry.name} does: solid with it, that is, of all maps of the "
        "images, and dashed without. Upright lines are t_S (phi) and t_C (phi_C). All other "
        "figures except that of the Lipschitz constants are with the symmetry.",
    )


def _spectrum(analysis: Analysis, shape: tuple[int, ...] | None) -> page.Picture:
    every = analysis.all_channels
    return page.Picture.of(
        "spectrum.png",
        regimes.draw_spectrum(analysis.eigenvalues, every.modes, shape, every.t_S),
        "Of all channels together: eigenvalues of the covariance, the time at which signal and "
        "noise of each mode are equal with t_S = 1/2 log Lambda (there is none where Lambda is at "
        "most 1), and the first modes.",
    )


def _speciation(analysis: Analysis) -> page.Picture:
    overall = analysis.overall
    figure = regimes.draw_speciation(
        overall.curves,
        {name: each.curves["phi"] for name, each in analysis.per_class.items()},
        analysis.times,
        overall.floor,
        overall.levels["t_S_phi"][1],
    )
    return page.Picture.of(
        "speciation.png",
        figure,
        "Probability that two clones forked at time t end in the same class, with 95 % intervals, "
        "overall and of the draws that start from each class. The horizontal line is the level of "
        "t_S (phi). The regimes are parted by phi_C = 1/2 and by it.",
    )


def _information(analysis: Analysis) -> page.Picture:
    curves = analysis.overall.curves
    figure = draw_information(curves, analysis.times, analysis.num_points, analysis.partition)
    points = (
        "what x_t says of its training point, I(a; x_t) = log n - E H, and the largest weight of "
        "a point in the posterior"
    )
    if "class_rate" not in curves:
        return page.Picture.of("information.png", figure, f"W{points[1:]}. Dotted: log n.")
    return page.Picture.of(
        "information.png",
        figure,
        "Left: what x_t says of its class, I(c; x_t) = H(c) - H(c | x_t), and how fast it is lost "
        "per unit of Ornstein-Uhlenbeck time, which is the mean square of the guidance vector over "
        "Delta_t; t_S (rate) is its peak, which another clock puts elsewhere (result.json has "
        f"those per log t and per log SNR). Right: {points}. Dotted: H(c) and log n.",
    )


def _pairs(analysis: Analysis, class_names: tuple[str, ...]) -> page.Picture:
    return page.Picture.of(
        "pairs.png",
        draw_pair_times(analysis.pairs, class_names, analysis.times["t_C_phi"].value),
        "Each pair of classes alone: above the diagonal the time at which phi crosses the level of "
        "t_S (phi), below it the peak of -dI(c; x_t)/dt; in brackets what lies below t_C (phi_C) "
        "of all images. result.json has the intervals.",
    )


def _noisy_samples(images: ImageSet, times: dict[str, Estimate]) -> page.Picture:
    pixels = images.images
    if images.labels is None:
        chosen = np.linspace(0, len(pixels) - 1, 4).astype(int)
    else:
        names = range(min(4, len(images.class_names)))
        each = 2 if len(names) < 4 else 1
        chosen = np.concatenate([np.flatnonzero(images.labels == c)[:each] for c in names])
    named = {"image": 0.0, "": 5.0}
    for name in ("t_C_entropy", "t_C_phi", "t_S_phi", "t_S_spectrum"):
        if name in times and math.isfinite(times[name].value):
            symbol = "$t_S$ (Λ)" if name == "t_S_spectrum" else level_of(name)[1].symbol
            named[symbol] = times[name].value
    return page.Picture.of(
        "samples.png",
        regimes.draw_noisy_samples(images.centred(chosen), images.mean, named),
        "Images with the noise of the named times, x_t.",
    )


def _schedule(steps: np.ndarray, times: dict[str, Estimate]) -> page.Picture:
    named = {"$t_C$": times["t_C_phi"], "$t_S$": times.get("t_S_phi")}
    marks = {
        name: time.value
        for name, time in named.items()
        if time is not None and math.isfinite(time.value)
    }
    return page.Picture.of(
        "schedule.png",
        draw_schedule(steps, marks),
        "The noise schedule in schedule.json, with its steps where the error of the exact score's "
        "sampler arises, beside the linear one. Above: steps per e-fold of t, with t_C (phi_C) and "
        "t_S (phi). Below: every 20th step.",
    )
