"""Figures of random-features scores: spectra, losses along training, and times against n."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from diffusion_jax.plots import style

_LINE: dict[str, Any] = {"linewidth": 1.2}
_POINTS: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linestyle": "none"}


def _colors(count: int) -> list[Any]:
    return list(colormaps["viridis"](np.linspace(0, 0.85, count)))


def draw_spectra(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draws the eigenvalues of networks' features over their law, a panel for each n.

    Args:
      rows: four, with `d`, `p`, `n`, `eigenvalues`; `law` with `eigenvalues`, `density` and
        `bulks`; `delta` with `at` and `mass`.
    """
    figure, grid = style.new(2, 2, width=10, height=6.5)
    least = min(row["eigenvalues"].min() for row in rows)
    low = max(0.8 * least, 0.02 * rows[0]["delta"]["at"])  # what is less falls into the first bin
    high = max(row["eigenvalues"].max() for row in rows) * 1.6
    edges = np.geomspace(low, high, 61)
    for axes, row in zip(grid.ravel(), rows, strict=True):
        d, p = row["d"], row["p"]
        counts = np.histogram(np.maximum(row["eigenvalues"], low), edges)[0]
        heights = counts / d / np.diff(np.log(edges))
        axes.stairs(heights, edges, fill=True, color="0.8", label="network")
        values, density = np.asarray(row["law"]["eigenvalues"]), np.asarray(row["law"]["density"])
        for i, (start, stop) in enumerate(row["law"]["bulks"]):
            part = (values >= start) & (values <= stop)
            height = p / d * (values * density)[part]
            name = "theory, $d \\to \\infty$" if i == 0 else None
            axes.plot(values[part], height, color="C0", label=name, **_LINE)
        delta = row["delta"]
        if delta["mass"] > 0:
            name = f"theory: $\\delta$ of mass {delta['mass']:.2f}"
            axes.axvline(delta["at"], color="C3", linestyle="--", label=name, **_LINE)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(0.01, 300))
        axes.set(title=f"$n$ = {row['n']} ($\\psi_n$ = {row['n'] / d:g})")
        axes.legend(frameon=False, fontsize="small", loc="upper right")
    for axes in grid[1]:
        axes.set_xlabel(r"eigenvalue $\lambda$ of $U$")
    for axes in grid[:, 0]:
        axes.set_ylabel(r"$(1/d)\, \mathrm{d}N/\mathrm{d}\ln\lambda$")
    figure.suptitle(f"$d$ = {rows[0]['d']}, $p$ = {rows[0]['p']}", fontsize="medium")
    return style.trimmed(figure)


def draw_losses(rows: Sequence[dict[str, Any]], run: dict[str, Any]) -> Figure:
    """Draws losses against tau and against tau/n, and those of a network really trained.

    Args:
      rows: with `n`, `tau`, `train`, `test`, `train_limit`, `distance` of the score from the
        true one, and `best`, that one's loss.
      run: `d`, `p`, `n`, `tau`, `losses` (T, 2), and `fine` with `tau`, `train` and `test`; `best`.
    """
    figure, ((by_time, by_points), (distance, trained)) = style.new(2, 2, width=11, height=8)
    for row, color in zip(rows, _colors(len(rows)), strict=True):
        for axes, scale in ((by_time, 1), (by_points, row["n"])):
            x = np.asarray(row["tau"]) / scale
            axes.plot(x, row["train"], color=color, label=f"$n$ = {row['n']}", **_LINE)
            axes.plot(x, row["test"], color=color, linestyle="--", **_LINE)
            axes.plot(x, row["train_limit"], color=color, linestyle=":", **_LINE)
        distance.plot(row["tau"], row["distance"], color=color, **_LINE)
    for axes in (by_time, by_points):
        axes.axhline(rows[0]["best"], color="0.6", linewidth=0.8)
    fine = run["fine"]
    for i, (name, dash) in enumerate((("train", "-"), ("test", "--"))):
        trained.plot(fine["tau"], fine[name], color="0.3", linestyle=dash, **_LINE)
        label = {"train": "training loss", "test": "test loss"}[name]
        losses = np.asarray(run["losses"])[:, i]
        trained.plot(run["tau"], losses, color=f"C{3 * i}", label=label, **_POINTS)
    trained.axhline(run["best"], color="0.6", linewidth=0.8)
    size = f"$d$ = {run['d']}, $p$ = {run['p']}, $n$ = {run['n']}"
    trained.set(title=f"gradient descent (points), {size}", xlabel=r"training time $\tau$")
    distance.set(xscale="log", yscale="log", xlabel=r"training time $\tau$")
    distance.set_ylabel(r"$E|s - s^*|^2/d$ from the true score")
    trained.legend(frameon=False, fontsize="small", loc="lower left")
    for axes in (by_time, by_points, trained):
        axes.set(xscale="log", yscale="log", ylim=(0.1, 60), ylabel="loss")
    title = f"$d$ = {rows[0]['d']}, $p$ = {rows[0]['p']}"
    by_time.set(xlabel=r"training time $\tau$", title=title)
    by_points.set(xlabel=r"$\tau/n$", title=title)
    looks = {"training": "-", "test": "--", r"training, $d \to \infty$": ":"}
    for name, dash in looks.items():
        by_time.plot([], [], color="0.3", linestyle=dash, label=name, **_LINE)
    by_time.legend(frameon=False, fontsize="small", loc="upper left")
    return style.trimmed(figure)


def draw_times(
    rows: Sequence[dict[str, Any]], found: dict[str, Any], fitted: tuple[float, float]
) -> Figure:
    """Draws tau_gen, tau_mem and the time of overfitting against n/d.

    Args:
      rows: with `psi_n`, `tau_gen`, `tau_mem`, `tau_best` and `tau_half_gap`.
      found: for each psi_p as text, `psi_n`, `tau_gen`, `tau_mem`, `tau_over` and `exponents`.
      fitted: ends of psi_n between which the exponents were fitted.
    """
    figure, axes = style.new(width=8.5, height=5)
    names = {
        "tau_gen": r"$\tau_{gen}$",
        "tau_mem": r"$\tau_{mem}$, bulk of the training points",
        "tau_over": "overfitting, where the training loss falls",
    }
    for (psi_p, curves), dash in zip(found.items(), ("-", "--"), strict=True):
        for i, (name, words) in enumerate(names.items()):
            power = curves["exponents"][name]
            label = f"{words}: $\\psi_p$ = {psi_p}, $\\propto n^{{{power:.2f}}}$"
            psi_n = np.asarray(curves["psi_n"])
            # With n > p there is nothing left to memorise with.
            part = psi_n <= (float(psi_p) if name == "tau_over" else np.inf)
            y = np.asarray(curves[name])[part]
            axes.plot(psi_n[part], y, color=f"C{i}", linestyle=dash, label=label, **_LINE)
    places = [row["psi_n"] for row in rows]
    points = {
        "tau_gen": ("C0", "o", "network: mean of the $d$ largest eigenvalues"),
        "tau_mem": ("C1", "o", "network: mean of the next, to the $n$-th"),
        "tau_half_gap": ("C2", "s", "network: half of the last gap between test and training"),
        "tau_best": ("0.3", "v", "network: least test loss"),
    }
    for name, (color, marker, label) in points.items():
        look = _POINTS | {"marker": marker, "markersize": 5}
        axes.plot(places, [row[name] for row in rows], color=color, label=label, **look)
    axes.set(xscale="log", yscale="log", xlabel=r"$\psi_n = n/d$", ylabel=r"training time $\tau$")
    low, high = fitted
    axes.set_title(f"exponents of theory for ${low:g} \\leq \\psi_n \\leq {high:g}$")
    figure.legend(frameon=False, fontsize="small", loc="outside right upper")
    return style.trimmed(figure)
