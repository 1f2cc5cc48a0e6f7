import io
import json
import os
from contextlib import suppress

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import writing
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.telemetry import Telemetry


def log(run_dir, start, *steps, scale=1.0):
    with Telemetry(run_dir, start, steps=10, batch_size=4) as telemetry:
        for step in steps:
            telemetry.advance(step, scale * step)
            telemetry.log(step, {"loss": scale * step})


def test_what_is_logged_is_in_both_files(tmp_path):
    log(tmp_path, 0, 1, 2, 3)
    expected = [(1, 1.0), (2, 2.0), (3, 3.0)]
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["loss"]) for record in records] == expected
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == expected
    assert {"images_per_second", "host_memory_gib"} <= set(board.Tags()["scalars"])


def test_a_kill_loses_nothing_that_was_logged(tmp_path):
    """Both files are written at once: nothing waits in memory."""
    telemetry = Telemetry(tmp_path, 0, steps=10, batch_size=4)
    telemetry.log(1, {"loss": 1.0})
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1]
    telemetry.__exit__(None, None, None)


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    log(tmp_path, 0, 1, 2, 3, 4)
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name(first.name.replace(".tfevents.", ".tfevents.1")))  # long ago
    log(tmp_path, 2, 3, 4, 5, scale=10.0)
    expected = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["loss"]) for record in records] == expected
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == expected


def test_a_damaged_line_costs_no_other(tmp_path):
    log(tmp_path, 0, 1, 2, 3, 4)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\xff" + lines[1][1:]  # not even text
    lines[2] = lines[2].replace(b'"step"', b'"stfp"')
    path.write_bytes(b"".join(lines) + b'{"step": 5, "lo')
    assert [record["step"] for record in read_metrics(path)] == [1, 4]
    log(tmp_path, 4, 5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 4, 5]


@pytest.fixture
def full():
    """Refuses every byte, as a full disk does."""
    with suppress(OSError), open("/dev/full", "wb") as file:
        yield file


def fill_the_disk(run_dir, full, *, events):
    """Logs an update, and then another one where the disk of one of the files is full."""
    with Telemetry(run_dir, 0, steps=10, batch_size=4) as telemetry:
        telemetry.log(1, {"loss": 1.0})
        if events:
            telemetry._board = RecordWriter(full)
        else:
            telemetry._file = io.TextIOWrapper(full)
        telemetry.log(2, {"loss": 1.0})


@pytest.mark.parametrize("events", [True, False])
def test_a_full_disk_is_one_sentence(tmp_path, full, events):
    with pytest.raises(UserError, match=r"metrics\.jsonl: No space left on device; free some"):
        fill_the_disk(tmp_path, full, events=events)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["step"] == 1


def test_a_full_disk_at_the_end_is_not_passed_over(tmp_path, full):
    telemetry = Telemetry(tmp_path, 0, steps=10, batch_size=4)
    telemetry._board = RecordWriter(full)
    full.write(b"buffered")
    with pytest.raises(UserError, match="No space left on device"):
        telemetry.__exit__(None, None, None)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, full):
    path = tmp_path / "summary.json"

    def write(content, file=None):
        with writing(path) as partial:
            partial.write_text(content)
            if file is not None:
                assert path.read_text() == "old"  # what a kill would leave
                file.write(b"more")
                file.flush()

    write("old")
    with pytest.raises(UserError, match=r"summary\.json: No space left on device"):
        write("new", full)
    assert path.read_text() == "old"
    write("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["summary.json"]
