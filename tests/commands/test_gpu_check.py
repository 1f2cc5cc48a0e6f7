"""All that `gpu_check` does on a GPU, on the CPU with a tiny model: a typo there costs a lease."""

import json
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from experiments import gpu_check
from experiments.gpu_check import Options
from experiments.tools.check import kernels, report, task
from experiments.tools.check.items import ITEMS
from experiments.tools.check.sizes import TINY

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")
NAMES = [item.name for item in ITEMS]


def lines_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def checked(tmp_path_factory, compiled_for_few_calls):
    """Every item measured: the folder, and what was found by item."""
    out = tmp_path_factory.mktemp("gpu_check")
    with pytest.MonkeyPatch.context() as patch:
        # What one item compiles, another may need, with nothing compiled before too.
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("xla")))
        # Two busy cores are no GPU.
        patch.setattr(gpu_check, "ITEMS", tuple(replace(item, limit=600) for item in ITEMS))
        gpu_check.check(Options(budget=3600, out=out, tiny=True))
    return out, {line["item"]: line for line in lines_of(out)[1:]}


@pytest.mark.slow
def test_every_item_is_measured(checked):
    _, lines = checked
    assert list(lines) == NAMES
    assert {name: line.get("error") for name, line in lines.items()} == dict.fromkeys(NAMES)
    assert all(task.BROKEN not in line["found"] for line in lines.values())


@pytest.mark.slow
def test_training_and_sampling_are_measured_on_both_sides(checked):
    _, lines = checked
    for name in ("train_64", "train_32", "float32"):
        found = lines[name]["found"]
        assert found["JAX"]["images/s"] > 0
        assert found["JAX"]["host, ms per dispatch"] > 0
    assert lines["sample_64"]["found"]["JAX"]["calls/s"] > 0
    assert lines["batches"]["found"]["JAX, batch 4"]["images/s"] > 0
    assert set(lines["flags"]["found"]) >= {"plain", "10 updates per dispatch"}
    assert all("ms per update" in form for form in lines["flags"]["found"].values())
    pytest.importorskip("torch")
    for name in ("train_64", "sample_64", "train_32", "float32"):
        found = lines[name]["found"]
        assert found["JAX / PyTorch"]["ratio of times"] > 0
        assert found["PyTorch eager"]
        assert found["PyTorch compiled"]


@pytest.mark.slow
def test_a_resumed_run_and_the_engine_are_held_against_their_like(checked):
    _, lines = checked
    straight, stopped = lines["resume"]["found"]["losses deterministic"]
    assert straight == stopped
    assert list(straight) == ["1", "2", "3", "4"]
    assert lines["engine"]["found"]["50 points"]["draws/s on the CPU"] > 0


@pytest.mark.slow
def test_the_papers_run_stays_and_is_forked(checked):
    out, lines = checked
    assert lines["paper"]["found"]["updates"] == 4
    assert (out / "paper" / "checkpoints" / "4").is_dir()
    assert (out / "paper" / "cloning_4" / "report.html").is_file()


@pytest.mark.slow
def test_the_table_is_written_with_what_it_is_worth_nothing_without(checked):
    out, _ = checked
    table = (out / "table.md").read_text()
    assert table.startswith("## Tiny: nothing here is a measurement")
    assert f"jax {jax.__version__}" in table
    assert "- card: " in table
    assert all(f"| {name} " in table for name in NAMES)


def only(monkeypatch, chosen, **changes):
    item = replace(next(item for item in ITEMS if item.name == chosen), **changes)
    monkeypatch.setattr(gpu_check, "ITEMS", (item,))


def test_what_was_found_before_the_time_was_up_is_kept(monkeypatch, tmp_path, capsys):
    only(monkeypatch, "machine", limit=0, least=0)  # no process starts as fast
    gpu_check.check(Options(out=tmp_path, tiny=True))
    (line,) = lines_of(tmp_path)[1:]
    assert line["status"] == "timed out"
    assert "machine timed out: ended after 0 s" in capsys.readouterr().out


def test_an_item_that_fails_says_why(monkeypatch, tmp_path):
    only(monkeypatch, "machine", name="nothing")
    gpu_check.check(Options(out=tmp_path, tiny=True))
    (line,) = lines_of(tmp_path)[1:]
    assert line["status"] == "failed"
    assert "not enough values to unpack" in line["error"]


def test_an_item_is_not_begun_without_its_time(tmp_path):
    gpu_check.check(Options(budget=1, out=tmp_path, only=("train_64",)))
    (line,) = lines_of(tmp_path)[1:]
    assert (line["status"], line["error"]) == ("skipped", "1 s are left, it needs 40")


def test_the_most_valuable_items_fit_the_budget_together():
    assert sum(item.limit for item in ITEMS[:6]) <= Options().budget


def test_the_parent_takes_no_gpu():
    program = "import sys, experiments.gpu_check; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unknown_items_and_no_budget_are_refused():
    with pytest.raises(gpu_check.UserError, match="there is no item speed; the items are machine"):
        Options(only=("speed",)).items()
    with pytest.raises(gpu_check.UserError, match="budget = 0 must be positive"):
        Options(budget=0).items()


def test_a_bound_is_kept_or_broken_and_nan_breaks_it(tmp_path):
    given = task.Task(TINY, True, tmp_path, tmp_path, 0.0)
    given.judge("good", 0.5, 1.0)
    given.judge("bad", float("nan"), 1.0)
    assert given.found[task.BROKEN] == ["bad: nan is over 1"]
    line = {"item": "correct", "status": "done", "seconds": 1.0, "found": given.found}
    assert "- correct, bad: nan is over 1" in report.table({}, [line])
    assert json.loads(given.result.read_text()) == given.found


def test_kernels_are_added_up_by_name(tmp_path):
    double = jax.jit(lambda x: jnp.sin(x @ x))
    x = jnp.ones((64, 64))
    jax.block_until_ready(double(x))
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            jax.block_until_ready(double(x))
    (path,) = tmp_path.rglob("*.xplane.pb")
    found = kernels.by_kernel(path)
    assert any(count == 3 and ms > 0 for ms, count in found.values())
    assert list(found.values()) == sorted(found.values(), key=lambda entry: -entry[0])
