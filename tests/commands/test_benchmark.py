"""The benchmark's arithmetic, and what it measures on a tiny model."""

import builtins
import json
import math
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.plots.benchmark import draw_ratios
from diffusion_jax.plots.style import save
from experiments.tools import benchmark, speed
from experiments.tools.speed import cards, fresh_start, ratios, tables, timing, turns
from experiments.tools.speed.effort import QUICK
from experiments.tools.speed.rows import compile_programs
from experiments.tools.speed.sides import make_sides

# Wider than the 8 groups of a norm: else biases before it have no gradient to compare.
TINY = {"base_channels": 16, "multiples": (1,), "attention_levels": (), "num_res_blocks": 1}
PAIRS = dict.fromkeys(QUICK.pairs, 2)
EFFORT = replace(QUICK, pairs=PAIRS, warm_up=1, sampled=2, compared={32: {}}, pause=0.0)
ROWS = ("forward_32", "sampling_32", "train_32")


@pytest.mark.parametrize(("count", "coverage"), [(6, 0.96875), (15, 0.96484375), (3, 0.75)])
def test_the_interval_of_the_median_covers_it_as_often_as_it_says(count, coverage):
    rng = np.random.default_rng(0)
    # Skewed, so that mean and median differ: the median of an exponential law is log 2.
    found = [timing.median_interval(x.tolist()) for x in rng.exponential(size=(1000, count))]
    assert found[0].coverage == pytest.approx(coverage, abs=1e-12)
    covered = sum(m.interval[0] <= math.log(2) <= m.interval[1] for m in found)
    error = math.sqrt(coverage * (1 - coverage) / 1000)
    assert abs(covered / 1000 - coverage) < 4 * error
    assert all(m.interval[0] <= m.median <= m.interval[1] for m in found)


def test_the_interval_narrows_with_the_sample_and_is_never_wider_than_asked_for():
    # One order statistic further in would cover less than 95 %.
    values = list(range(1, 26))
    assert timing.median_interval(values).interval == (8, 18)
    assert timing.median_interval([3.0]) == timing.Median(3.0, (3.0, 3.0), 0.0, 1)


def test_ratios_are_of_pairs_and_against_the_faster_reference():
    # The machine slows down tenfold halfway: the ratio of a pair does not see it.
    ours, slow = [1.0, 1.0, 10.0, 10.0], [2.0, 2.0, 20.0, 20.0]
    slower = [2 * x for x in slow]
    result = ratios.ratio({"compiled": (ours, slower), "eager": (ours, slow)})
    assert (result["median"], result["interval"]) == (0.5, (0.5, 0.5))
    assert result["reference"] == "eager"


def test_calls_take_turns_and_the_warm_up_is_not_counted():
    calls = []
    seconds = timing.alternate(2, lambda: calls.append("a"), lambda: calls.append("b"))
    assert "".join(calls) == "baabba"
    assert [len(record) for record in seconds] == [2, 2]


def test_work_in_a_row_is_waited_for_once_and_shares_its_seconds():
    said = []
    call = timing.in_a_row(lambda: said.append("launch"), lambda _: said.append("wait"), 3)
    clock = iter(range(0, 100, 6))  # a call takes six seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: next(clock))
        assert timing.alternate(2, call, warm_up=0, together=3) == [[2.0, 2.0]]
    assert said == 2 * ["launch", "launch", "launch", "wait"]


@pytest.mark.parametrize(
    ("kind", "bfloat16", "tf32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("NVIDIA H100 PCIe", 756.0, 378.0),
        ("NVIDIA A100-SXM4-80GB", 312.0, 156.0),
        ("NVIDIA L40S", 362.0, 181.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("cpu", None, None),
    ],
)
def test_the_peak_of_a_card_follows_from_its_name(kind, bfloat16, tf32):
    assert cards.peak_tflops(kind, bfloat16=True) == bfloat16
    assert cards.peak_tflops(kind, bfloat16=False) == tf32


def test_extrapolation_is_proportional_to_the_steps_not_run():
    assert ratios.extrapolate(0.5, 10) == 50
    assert ratios.extrapolate(0.5, 1000) == 0.5


def test_bounds_are_upper_and_nan_breaks_them():
    values = {"forward_32": 1.2, "train_64": 1.21, "second_start": math.nan, "unknown": 9.0}
    assert [line.split(":")[0] for line in ratios.broken_bounds(values)] == [
        "train_64",
        "second_start",
    ]


def test_a_markdown_table_has_equally_long_lines():
    lines = tables.markdown(["a", "longer"], [["wide cell", "1"], ["x", "2"]]).splitlines()
    assert lines[0] == "| a         | longer |"
    assert lines[1] == "| --------- | ------ |"
    assert len({len(line) for line in lines}) == 1


def test_a_time_limit_ends_what_takes_longer():
    with pytest.raises(TimeoutError), turns.time_limit(1):
        time.sleep(10)


@pytest.fixture(scope="module")
def sides():
    pytest.importorskip("torch", reason="torch is not installed")
    return make_sides(8, 1, **TINY)


@pytest.mark.slow
@pytest.mark.usefixtures("rendered")
def test_everything_is_measured_and_written(sides, tmp_path):
    report = json.loads(json.dumps(benchmark.measure(sides, EFFORT)))
    assert tuple(report["ratios"]) == ROWS
    for row in report["ratios"].values():
        low, high = row["interval"]
        assert 0 < low <= row["median"] <= high
        assert {side: len(x) for side, x in row["timed_seconds"]["eager"].items()} == {
            "JAX": 2,
            "PyTorch": 2,
        }
    train = report["ratios"]["train_32"]
    # A quicker reference makes the ratio larger.
    assert train["against_quickest_adam"]["median"] >= train["median"]
    steps = report["sampling_32"]["seconds_of_1000_steps"]
    assert steps["JAX"] == pytest.approx(500 * report["seconds"]["sampling_32"]["JAX"])
    assert report["data_pipeline"]["share_alone"] > 0
    assert set(report["agreement"]) == {"32 px", "forward_32"}
    assert set(ratios.bounded(report)) == {*ROWS, "data_pipeline"}
    shown = tables.tables(report, ratios.BOUNDS)
    assert "| train step, 32 px " in shown
    save(draw_ratios(report["ratios"], ratios.BOUNDS, "tiny"), tmp_path / "benchmark.png")
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


def test_models_that_disagree_are_not_timed(sides):
    params = jax.tree.map(np.copy, sides.params)
    params["init_conv"]["kernel"] += 1e-3
    other, case = replace(sides, params=params), (32, False)
    made = compile_programs(other, EFFORT, [case])[case]
    report = {}
    with pytest.raises(UserError, match=r"disagree, so nothing is timed: forward_32, output"):
        benchmark.measure_case(report, other, EFFORT, made, case, None, print)
    assert report == {}


def test_without_torch_jax_is_measured_alone(monkeypatch, capsys):
    real = builtins.__import__

    def no_torch(name, *arguments, **more):
        if name == "torch" or name.startswith("torch_ref"):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    # Other tests have imported it.
    monkeypatch.delitem(sys.modules, "experiments.tools.speed.reference", raising=False)
    monkeypatch.delattr(speed, "reference", raising=False)
    report = benchmark.measure(make_sides(8, 1, **TINY), EFFORT)
    assert "note: torch is not installed" in capsys.readouterr().out
    assert report["ratios"] == {}
    assert tuple(report["seconds"]) == ROWS
    assert set(ratios.bounded(report)) == {"data_pipeline"}
    assert "| train step, 32 px " in tables.tables(report, ratios.BOUNDS)


def test_a_fresh_process_that_fails_leaves_the_rest(monkeypatch, capsys):
    monkeypatch.setattr(fresh_start.sys, "executable", "/does/not/exist")
    assert fresh_start.measure(8, 32, with_torch=False) is None
    assert "note: the start of a fresh process could not be measured" in capsys.readouterr().out
