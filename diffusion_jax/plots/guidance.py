"""Figures of classifier-free guidance: theory against samples, windows, and guided digits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffusion_jax.plots import style

_POINTS: dict[str, Any] = {"marker": "o", "markersize": 3, "linestyle": "none"}
_ON_PATHS, _IN_D = "backward process, one dimension", "backward process"
_FLOW = "probability flow, one dimension"
_SHOWN = ("-1", "0", "1", "2", "4", "8")


def _errorbar(axes: Axes, x: Any, found: np.ndarray, **look: Any) -> None:
    """Means with two standard errors, of (..., 2)."""
    mean, error = np.asarray(found, np.float64).T
    axes.errorbar(x, mean, 2 * error, **{**_POINTS, **look})


def _colors(count: int) -> list[Any]:
    return list(colormaps["viridis"](np.linspace(0, 0.9, count)))


def _legend(axes: Axes, entries: dict[str, dict[str, Any]], **place: Any) -> None:
    handles = [Line2D([], [], label=name, **look) for name, look in entries.items()]
    axes.add_artist(axes.legend(handles=handles, frameon=False, fontsize="small", **place))


def draw_mixture(
    theory: dict[str, Any], samples: Sequence[dict[str, Any]], dimensions: Sequence[int]
) -> Figure:
    """Draws phi and H along guided paths, and overshoot, variance and t_S against the weight.

    Args:
      theory: `d` of the curves along time, `t`, `along` (for each weight as text, `phi` and
        `class_entropy`), and `against` with `w`, and for each of `diffusion` and `flow` a list of
        `overshoot` and `spread` by dimension and `t_S`, minus that without guidance.
      samples: rows with `d`, `w`, `of`, `t`, and the quantities (T, 2), mean and standard error.
      dimensions: those of `against`.
    """
    figure, ((phi, entropy, empty), (overshoot, spread, times)) = style.new(2, 3, 12, 7)
    empty.axis("off")
    t = np.asarray(theory["t"])
    looks = dict(zip(_SHOWN, _colors(len(_SHOWN)), strict=True))
    for axes, name in ((phi, "phi"), (entropy, "class_entropy")):
        for w, color in looks.items():
            dash = "--" if w == "-1" else "-"
            axes.plot(t, theory["along"][w][name], color=color, linewidth=1.2, linestyle=dash)
            for row in samples:
                if row["of"] == _ON_PATHS and row["d"] == theory["d"] and row["w"] == float(w):
                    _errorbar(axes, row["t"], row[name], color=color)
        axes.set(xlabel="time $t$", xlim=(0, t[-1]))
    phi.axhline(0.7752, color="0.6", linewidth=0.8, linestyle=":")
    phi.text(t[-1], 0.78, "0.7752", ha="right", va="bottom", color="0.4", fontsize="small")
    phi.set(ylabel=r"$\phi_w$: unguided clones of guided $x_t$", title=f"$d$ = {theory['d']}")
    entropy.set(ylabel=r"$H(c \mid x_t)$, nats", title=f"$d$ = {theory['d']}")
    entries = {f"$w$ = {w}": {"color": color} for w, color in looks.items()}
    entries["$w$ = -1"]["linestyle"] = "--"
    entries["theory, from $N(0, I)$ as the samples"] = {"color": "0.3"}
    entries["samples (2 standard errors)"] = {"color": "0.3", **_POINTS}
    _legend(empty, entries, loc="center")
    _draw_against(overshoot, spread, times, theory["against"], samples, dimensions)
    return style.trimmed(figure)


def _draw_against(
    overshoot: Axes,
    spread: Axes,
    times: Axes,
    against: dict[str, Any],
    samples: Sequence[dict[str, Any]],
    dimensions: Sequence[int],
) -> None:
    """The lower row of `draw_mixture`."""
    w = np.asarray(against["w"])
    guided = w >= 0
    colors = {d: f"C{i}" for i, d in enumerate(dimensions)}
    for axes, name in ((overshoot, "overshoot"), (spread, "spread")):
        for i, (d, color) in enumerate(colors.items()):
            line = np.array([row[name][i] for row in against["diffusion"]])
            axes.plot(w[guided], line[guided], color=color, linewidth=1.2)
            rows = [row for row in samples if row["d"] == d and not isinstance(row["w"], str)]
            for row in rows:
                place = [row["w"] + 0.1 * (i - 1)]  # side by side
                if row["w"] >= 0 and row["of"] in (_ON_PATHS, _IN_D):
                    hollow = {} if row["of"] == _ON_PATHS else {"markerfacecolor": "none"}
                    _errorbar(axes, place, row[name][-1:], color=color, **hollow)
                elif row["of"] == _FLOW and i == 0:
                    _errorbar(axes, place, row[name][-1:], color="0.3", marker="x", markersize=4)
        line = np.array([row[name][-1] for row in against["flow"]])
        axes.plot(w[guided], line[guided], color="0.3", linewidth=1.2, linestyle="--")
        axes.set(xlabel="weight $w$")
    overshoot.set(ylabel=r"overshoot of the mean, $(E q - |m|)/\sigma$")
    spread.set(ylabel=r"variance left, Var $q/\sigma^2$", ylim=(0, 1.2))
    for name, dash, color in (("diffusion", "-", "C0"), ("flow", "--", "0.3")):
        shift = [row["t_S"] for row in against[name]]
        times.plot(w, shift, linewidth=1.2, color=color, linestyle=dash)
    times.set(xlabel="weight $w$", ylabel="$t_S(w) - t_S$, the same for every $d$")
    entries: dict[str, dict[str, Any]] = {f"$d$ = {d}": {"color": c} for d, c in colors.items()}
    entries["probability flow, every $d$"] = {"color": "0.3", "linestyle": "--"}
    _legend(spread, entries, loc="lower left")
    points = {"in one dimension": _POINTS | {"color": "0.3"}}
    points["in $d$ dimensions"] = points["in one dimension"] | {"markerfacecolor": "none"}
    points[f"of the flow, $d$ = {dimensions[0]}"] = points["in one dimension"] | {"marker": "x"}
    _legend(overshoot, points, loc="upper left")
    kinds: dict[str, dict[str, Any]] = {"backward process": {"color": "C0"}}
    kinds["probability flow"] = {"color": "0.3", "linestyle": "--"}
    _legend(times, kinds, loc="upper left")


def draw_windows(theory: dict[str, Any], samples: Sequence[dict[str, Any]]) -> Figure:
    """Draws the overshoot and the variance along time for weights that change along it.

    Args:
      theory: `d`, `t`, `t_S`, and `windows`: for each name, `diffusion` and `flow`, each with
        `overshoot` and `spread`.
      samples: rows whose `w` is such a name; see `draw_mixture`.
    """
    figure, grid = style.new(2, 2, width=10, height=7)
    t = np.asarray(theory["t"])
    for column, process in enumerate(("diffusion", "flow")):
        for axes, name in zip(grid[:, column], ("overshoot", "spread"), strict=True):
            for i, (window, laws) in enumerate(theory["windows"].items()):
                axes.plot(t, laws[process][name], color=f"C{i}", linewidth=1.2, label=window)
                rows = [row for row in samples if row["w"] == window and process == "diffusion"]
                for row in rows:
                    _errorbar(axes, row["t"], row[name], color=f"C{i}")
            axes.axvline(theory["t_S"], color="0.5", linewidth=1, linestyle=":")
            axes.set(xlabel="time $t$", xlim=(0, t[-1]))
    grid[0, 0].set(
        title=f"backward process, $d$ = {theory['d']}",
        ylabel=r"$E q - e^{-t}|m|$, in $\sqrt{\Gamma}$",
    )
    grid[1, 0].set(ylabel=r"Var $q/\Gamma$")
    grid[0, 1].set(title=f"probability flow, $d$ = {theory['d']}")
    for panels in grid:
        ends = np.array([axes.get_ylim() for axes in panels])
        for axes in panels:
            axes.set_ylim(ends[:, 0].min(), ends[:, 1].max())
    handles, labels = grid[0, 0].get_legend_handles_labels()
    names = [label.replace("t_S", "$t_S$") for label in labels]
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return style.trimmed(figure)


def draw_digits(found: dict[str, Any], weights: Sequence[float], against: dict[str, Any]) -> Figure:
    """Draws guided digits against the weight, and phi and H along their paths.

    Args:
      found: for each kind of scores, and each digit or `all`, for each weight as text, `t`, `t_S`,
        `phi` and `class_entropy` (each `mean` and `stderr`) and, for digits, `overshoot`,
        `axis_spread` and `spread` (mean and standard error); `digits`, and `posterior` with `t`,
        `phi` and the `t_S` of each digit.
      weights: the weights.
      against: of two Gaussians, see `draw_mixture`.
    """
    figure, ((shift, along, total), (phi, entropy, times)) = style.new(2, 3, 13, 7)
    kinds = [name for name, rows in found.items() if isinstance(rows, dict) and "all" in rows]
    last, guided = found["digits"][-1], np.array([w for w in weights if w >= 0])
    panels = {shift: "overshoot", along: "axis_spread", total: "spread"}
    looks = {
        (kind, digit): {"color": f"C{c}", "linestyle": dash, "marker": "o", "markersize": 3}
        for kind, dash in zip(kinds, ("-", "--"), strict=True)
        for c, digit in enumerate(found["digits"])
    }
    for i, ((kind, digit), look) in enumerate(looks.items()):
        rows = [found[kind][digit][f"{w:g}"] for w in guided]
        place = guided + 0.08 * (i - 1.5)  # side by side
        for axes, name in panels.items():
            _errorbar(axes, place, np.array([row[name] for row in rows]), linewidth=1, **look)
        start = found["posterior"]["t_S"][digit].value
        t_S = [row["t_S"] for row in rows]
        value = np.array([each.value for each in t_S])
        bars = np.abs(np.array([[each.low, each.high] for each in t_S]).T - value)
        points = look | {"linestyle": "none"} | ({} if kind == kinds[0] else {"mfc": "none"})
        times.errorbar(place, value - start, bars, **points)
    fine = np.asarray(against["w"])
    shifts = np.array([row["t_S"] for row in against["diffusion"]])
    times.plot(
        fine[fine >= 0], shifts[fine >= 0], color="0.3", linewidth=1, label="two Gaussians, theory"
    )
    times.legend(frameon=False, fontsize="small", loc="upper left")
    for axes, name in ((phi, "phi"), (entropy, "class_entropy")):
        for w, color in zip(weights, _colors(len(weights)), strict=True):
            for kind, dash in zip(kinds, ("-", "--"), strict=True):
                row = found[kind]["all" if w == -1 else last][f"{w:g}"]
                values = np.stack([row[name]["mean"], row[name]["stderr"]], axis=1)
                _errorbar(axes, row["t"], values, color=color, linestyle=dash, linewidth=1)
        axes.set(xlabel="time $t$")
    posterior: dict[str, Any] = {"color": "k", "marker": "+", "linestyle": "none", "zorder": 9}
    phi.plot(found["posterior"]["t"], found["posterior"]["phi"], markersize=8, **posterior)
    shift.set(ylabel="overshoot along the axis of the means,\nin deviations of the class")
    along.set(ylabel="variance along that axis, over the class's")
    total.set(ylabel="total variance, over the class's")
    times.set(ylabel="$t_S(w) - t_S$")
    for axes in (*panels, times):
        axes.set_xlabel("weight $w$")
    phi.set(ylabel=rf"$\phi_w$, towards the {last}s")
    entropy.set(ylabel=r"$H(c \mid x_t)$, nats")
    entries = {f"{digit}s, {kind}": dict(look) for (kind, digit), look in looks.items()}
    _legend(shift, entries, loc="upper left")
    entries = {
        f"$w$ = {w:g}": {"color": color}
        for w, color in zip(weights, _colors(len(weights)), strict=True)
    }
    _legend(phi, {**entries, "posterior, all": posterior}, loc="lower left")
    return style.trimmed(figure)
