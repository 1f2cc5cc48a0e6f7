"""Schedules by name, with parameters, and from a file."""

import dataclasses
import json

import numpy as np
import pytest

from diffusion_jax.config import Config, ScheduleConfig
from diffusion_jax.errors import UserError
from diffusion_jax.schedule import constant_schedule, cosine_schedule, from_beta, linear_schedule
from diffusion_jax.schedules import SCHEDULES, parameters_of, read_times
from diffusion_jax.training import saved_config
from experiments.train_lsun import parse


def same(first, second):
    np.testing.assert_array_equal(first.time, second.time)
    np.testing.assert_array_equal(first.beta, second.beta)


def test_parameters_go_to_the_schedule():
    same(ScheduleConfig("constant", 30, {"beta": 0.02}).build(), constant_schedule(30, 0.02))
    same(ScheduleConfig("linear", 50, {"last": 0.01}).build(), linear_schedule(50, last=0.01))
    beta = np.linspace(2e-3, 0.2, 50)  # both ends times 1000/L
    same(ScheduleConfig("linear", 50, {"last": 0.01}).build(), from_beta(beta))
    same(ScheduleConfig("cosine", 40, {"offset": 0.02}).build(), cosine_schedule(40, 0.02))
    u = np.arange(41) / 40
    g = np.cos(np.pi / 2 * (u + 0.02) / 1.02) ** 2
    same(cosine_schedule(40, 0.02), from_beta(np.minimum(1 - g[1:] / g[:-1], 0.999)))
    assert parameters_of("linear") == {"first": 1e-4, "last": 2e-2}


def test_what_is_not_there_is_refused_with_what_is():
    with pytest.raises(UserError, match="no schedule 'sigmoid'; choose from linear, constant"):
        ScheduleConfig("sigmoid").build()
    with pytest.raises(UserError, match=r"no parameter gamma; it has beta = 0\.006"):
        ScheduleConfig("constant", 30, {"gamma": 1.0}).build()
    message = r"the constant schedule of 30 steps, beta = 1\.5: every beta must lie in"
    with pytest.raises(UserError, match=message):
        ScheduleConfig("constant", 30, {"beta": 1.5}).build()
    with pytest.raises(UserError, match="between 1 and 1000"):
        ScheduleConfig("constant", 1001).build()


def test_a_schedule_of_ones_own_is_one_function(monkeypatch):
    def sigmoid_schedule(num_steps=1000, steepness=6.0):
        u = np.linspace(-steepness, steepness, num_steps + 1)
        alpha_bar = 1 / (1 + np.exp(u))
        return from_beta(1 - alpha_bar[1:] / alpha_bar[:-1])

    monkeypatch.setitem(SCHEDULES, "sigmoid", sigmoid_schedule)
    built = ScheduleConfig("sigmoid", 100, {"steepness": 3.0}).build()
    same(built, sigmoid_schedule(100, 3.0))
    assert parameters_of("sigmoid") == {"steepness": 6.0}


def test_a_file_is_kept_with_the_configuration(tmp_path):
    """The file may go: config.json holds its times, to the last digit."""
    times = np.cumsum(np.random.default_rng(0).uniform(0.001, 0.02, 300))
    path = tmp_path / "mine_v1.0.json"
    path.write_text(json.dumps({"name": "adaptive", "of": "x", "time": times.tolist()}))
    settled = ScheduleConfig(str(path)).settled()
    path.unlink()
    assert (settled.schedule, settled.diffusion_steps) == ("mine_v1.0", 300)
    back = saved_config.from_dict(
        json.loads(json.dumps(saved_config.to_dict(Config(schedule=settled))))
    )
    assert back.schedule == settled
    np.testing.assert_allclose(back.schedule.build().time, times, rtol=1e-6)
    assert settled.settled() == settled


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", 9999 * "[", '{"time": 3}', '{"time": null}', '{"time": "123"}'),
        *('{"time": ["a"]}', '{"time": {"1": 0, "2": 0}}', '{"time": [1, 1' + 400 * "0" + "]}"),
    ],
    ids=range(11),
)
def test_a_file_that_holds_no_schedule(tmp_path, text):
    path = tmp_path / "schedule.json"
    path.write_text(text)
    with pytest.raises(UserError, match="holds no schedule"):
        read_times(path)


@pytest.mark.parametrize("time", [[], [1.0], [0, 1], [-1.0, 1], [1, 1], [2, 1], [1, float("inf")]])
def test_times_that_do_not_increase(tmp_path, time):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps({"time": time}))
    with pytest.raises(UserError, match="must be two or more, positive, and increase"):
        read_times(path)


def test_a_file_that_is_not_there_or_has_other_steps(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        ScheduleConfig(str(tmp_path / "schedule.json")).build()
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps({"time": [0.1, 0.2, 3.0]}))
    with pytest.raises(UserError, match="has 3 steps, not diffusion_steps = 500"):
        ScheduleConfig(str(path), 500).settled()
    assert ScheduleConfig(str(path), 3).build().num_steps == 3


def test_a_run_goes_on_with_its_file_given_again_and_with_no_other(tmp_path, monkeypatch):
    """By its times: whatever the file is called, and whether it is there."""
    monkeypatch.chdir(tmp_path)
    first, other = tmp_path / "first.json", tmp_path / "other.json"
    times = np.linspace(0.1, 3, 60).tolist()
    first.write_text(json.dumps({"time": times}))
    config = parse(["--preset", "sample", "--schedule", str(first), "--run-dir", "run"])
    (tmp_path / "run").mkdir()
    began = dataclasses.replace(config, schedule=config.schedule.settled())
    saved_config.write(began)
    first.rename(other)
    for words in ([], ["--schedule", str(other)]):
        assert parse(["--resume", "run", *words]).schedule.times == tuple(times)
    other.write_text(json.dumps({"time": [2 * t for t in times]}))
    with pytest.raises(UserError, match="times: 60 values -> 60 values"):
        parse(["--resume", "run", "--schedule", str(other)])
    with pytest.raises(UserError, match="schedule: first -> linear"):
        parse(["--resume", "run", "--schedule", "linear"])
