"""Which runs a study is made of, on which images, and how many at a time."""

import pytest
from tiny_runs import save_digits

from diffusion_jax import data
from diffusion_jax.errors import UserError
from diffusion_jax.memorising import workers
from diffusion_jax.memorising.cells import Cell, cells_of, is_done, plan
from experiments.memorisation_options import parse


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_digits(tmp_path_factory.mktemp("data"))


def planned(out, path, *options):
    out.mkdir(exist_ok=True)
    options = parse(["--out", str(out), "--data", str(path), *map(str, options)], "")
    return plan(options.out, options.config, options.cells())


def test_order_and_names():
    cells = cells_of((64, 16), (32, 8), 2, (500, 100))
    assert [cell.name for cell in cells[:4]] == [
        *("n16_w8_s0", "n16_w8_s1", "n16_w32_s0", "n16_w32_s1")
    ]
    assert {cell.steps for cell in cells if cell.size == 64} == {500}


def test_replicas_share_no_image_and_all_the_held_out_ones(tmp_path, path):
    found = planned(
        tmp_path,
        path,
        *("--sizes", 8, 20, "--replicas", 2, "--widths", 8, 16, "--held-out-per-class", 5),
    )
    assert not found.refused
    held_out, used = set(), {}
    for cell, config in found.configs.items():
        training, others = data.load_split(config.data)
        assert len(training.images) == cell.size
        assert config.training.batch_size == min(128, cell.size) or cell.size < 64
        assert config.training.batch_size <= cell.size
        assert config.output.run_dir == tmp_path / cell.name
        assert config.seed == cell.replica
        assert config.output.evaluate_at == "log"
        held_out.add(others.images.tobytes())
        used[cell] = {image.tobytes() for image in training.images}
        assert not used[cell] & {image.tobytes() for image in others.images}
    assert len(held_out) == 1
    for size in (8, 20):
        first, second = (
            used[Cell(size, 8, i, found.configs[Cell(size, 8, i, 350_000)].steps)] for i in (0, 1)
        )
        assert not first & second


def test_what_there_is_no_room_for_is_refused_alone(tmp_path, path):
    found = planned(tmp_path, path, "--sizes", 8, 9, 16, 90, "--held-out-per-class", 5)
    assert [cell.size for cell in found.configs] == [8, 16]
    refused = {cell.size: why for cell, why in found.refused.items()}
    assert "shared evenly by 2 classes" in refused[9]
    assert "40 images" in refused[90]
    assert {config.data.held_out_after for config in found.configs.values()} == {8}
    with pytest.raises(UserError, match="none of the sizes"):
        planned(tmp_path / "other", path, "--sizes", 90)
    with pytest.raises(UserError, match="none of the sizes"):
        planned(tmp_path / "other", path, "--sizes", 8, "--held-out-per-class", 37)


def test_what_is_added_is_judged_by_the_same_images(tmp_path, path):
    first = planned(tmp_path, path, "--sizes", 8, "--held-out-per-class", 5, "--held-out-after", 12)
    later = planned(tmp_path, path, "--sizes", 8, 24, 32)
    assert [cell.size for cell in later.configs] == [8, 24]
    assert "begin after the first 12 of each class" in next(iter(later.refused.values()))
    more = planned(tmp_path, path, "--sizes", 8, "--replicas", 4)
    assert [cell.replica for cell in more.configs] == [0, 1, 2]  # and not the fourth
    held_out = [data.load_split(c.data)[1] for p in (first, later) for c in p.configs.values()]
    assert len({each.images.tobytes() for each in held_out}) == 1
    for option, value in (("--held-out-per-class", 6), ("--held-out-after", 13)):
        with pytest.raises(UserError, match="give another --out"):
            planned(tmp_path, path, "--sizes", 8, option, value)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"study\.json is damaged"):
        planned(tmp_path, path, "--sizes", 8)


def test_without_held_out_images_as_many_as_an_evaluation_takes(tmp_path, path):
    (config,) = planned(tmp_path, path, "--sizes", 8).configs.values()
    assert config.data.held_out_per_class == 32
    assert not is_done(config)


def test_presets_and_descent(tmp_path, path):
    options = parse(["--preset", "celeba32_gray", "--optimizer", "sgd"], "")
    config = options.config
    assert (config.data.grey, config.data.image_size) == (True, 32)
    assert (config.model.multiples, config.model.attention_levels) == ((1, 2, 4), (2, 3))
    assert (config.training.learning_rate, config.training.batch_size) == (1e-2, 512)
    assert (config.output.sampler, config.output.evaluate_calls) == ("ddim", 100)
    every = parse(["--data", str(path), "--evaluate-every", "50"], "").config.output
    assert (every.evaluate_every, every.evaluate_at) == (50, None)
    own = parse(["--optimizer", "sgd", "--learning-rate", "0.3"], "").config.training
    assert own.learning_rate == 0.3


def test_a_gpu_for_each_run_at_a_time(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert workers.devices() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert workers.devices() == [None]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(workers.devices()) >= 1
