"""The table of what is measured along time, and a line added to it from outside."""

from dataclasses import replace

import jax
import numpy as np

import diffusion_jax as dj
from diffusion_jax.regimes import measures, transitions
from diffusion_jax.regimes.analysis import to_json
from diffusion_jax.regimes.measures import OBSERVABLES
from diffusion_jax.regimes.observables import Level, Observable

FAST = {"accuracy": 0.03, "max_draws": 1024}


def blobs(n=40, size=6):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    labels = np.arange(n) % 2
    return np.clip(np.stack([x, y])[labels] + 0.15 * rng.standard_normal((n, size, size)), 0, 1)


def own_probability(ensemble):
    return np.exp(ensemble.draws.log_own)


def test_a_line_from_outside_is_all_that_a_measure_needs(monkeypatch):
    """E p(mu | x_t) is phi_C by another name: the source is a draw from its posterior."""
    line = Observable(
        "the source",
        own_probability,
        falls=True,
        times={"t_C_own": Level(0.5, "p_mu = 1/2"), "t_C_far": Level(2.0, "p_mu = {level:g}")},
    )
    monkeypatch.setitem(OBSERVABLES, "own", line)
    times = {"t_C_classes": Level(0.5, "p_mu of classes = 1/2")}
    of_classes = replace(line, needs_classes=True, times=times)
    monkeypatch.setitem(OBSERVABLES, "of_classes", of_classes)
    study = dj.analyse(blobs(), np.arange(40) % 2, **FAST)
    result = to_json(study.analysis)
    curves = result["curves"]
    assert set(curves) == set(OBSERVABLES)
    error = np.hypot(curves["own"]["standard_error"], curves["phi_C"]["standard_error"])
    difference = np.abs(np.subtract(curves["own"]["mean"], curves["phi_C"]["mean"]))
    assert np.all(difference <= 5 * error + 1e-6)  # the last for float32
    assert curves["own"]["mean"][0] > 0.99 > 0.1 > curves["own"]["mean"][-1]
    own, other = result["t_C_own"], result["t_C_phi"]
    assert max(own["low"], other["low"]) < min(own["high"], other["high"])
    assert own["value"] == study.times["t_C_own"].value
    assert result["t_C_far"] == {"value": None, "low": None, "high": None}
    assert {"t_C_own", "t_C_far"} <= set(result["per_class"]["1"])
    rows = [line.split() for line in repr(study).splitlines()]
    (row,) = [row for row in rows if row[:1] == ["t_C_own"]]
    assert row[1:4] == ["p_mu", "=", "1/2"]
    (row,) = [row for row in rows if row[:1] == ["t_C_far"]]
    assert row[1:6] == ["p_mu", "=", "2", "<", "0.001"]  # a falling curve begins under its level
    assert curves["of_classes"] == curves["own"]
    assert result["t_C_classes"] == result["t_C_own"]
    unlabelled = to_json(dj.analyse(blobs(), **FAST).analysis)
    assert unlabelled["t_C_own"]["value"] > 0
    assert "own" in unlabelled["curves"]
    assert not {"t_C_classes", "of_classes"} & {*unlabelled, *unlabelled["curves"]}


def test_a_measure_that_asks_for_accuracy_gets_its_draws(monkeypatch):
    points = np.random.default_rng(1).standard_normal((50, 4))

    def loose(ensemble):
        return 5 * ensemble.draws.collision

    def draws():
        return transitions.measure(points, None, jax.random.key(0), 0.02, 20_000)

    few = len(draws().index)
    monkeypatch.setitem(OBSERVABLES, "loose", Observable("5 phi_C", loose, accurate=True))
    many = draws()
    assert len(many.index) > few
    found = transitions.summarize(many, 50, np.ones(1)).curves["loose"]
    assert found.standard_error.max() < 1.05 * 0.02 or len(many.index) == 20_000


def test_every_time_has_one_observable_and_what_figures_and_table_need():
    names = [name for each in OBSERVABLES.values() for name in each.times]
    assert len(set(names)) == len(names)
    for name in names:
        curve, level = measures.level_of(name)
        assert OBSERVABLES[curve].times[name] is level
        assert level.symbol
        assert level.described({0.25})
    assert np.isnan(OBSERVABLES["class_rate"].times["t_S_rate"].value)  # a peak, not a level
    phi = OBSERVABLES["phi"].times["t_S_phi"]
    assert phi.described({0.7752}) == "phi = 0.775"
    assert phi.described({0.7752, 0.6}) == "55 % from floor to 1"


def test_curves_rise_and_fall_as_the_table_says():
    draws = transitions.measure(
        blobs().reshape(40, -1), np.arange(40) % 2, jax.random.key(0), 0.03, 1024
    )
    regimes = transitions.summarize(draws, 40, np.array([0.5, 0.5]))
    for name, each in OBSERVABLES.items():
        mean = regimes.curves[name].mean
        assert (mean[-1] < mean[0]) == each.falls
    assert regimes.curves["class_rate"].mean.max() > 100 * regimes.curves["class_rate"].mean[-1]
