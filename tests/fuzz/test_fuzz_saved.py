"""What a run, a study and an experiment keep beside their arrays, damaged."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
from fuzzing import EDITS, JSON_EDITS, changed_json, damaged, fuzz
from hypothesis import strategies as st

from diffusion_jax import forking, study
from diffusion_jax.config import Config
from diffusion_jax.judging import classifier
from diffusion_jax.regimes import commitment
from diffusion_jax.runtime import lock
from diffusion_jax.sampling import GaussianStart
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.schedules import read_times
from diffusion_jax.training import metrics, moments, saved_config
from experiments import regimes

RUN = Path(__file__).parents[1] / "reference" / "run" / "run"


def fuzz_json(path, value, read, check, slow=1):
    """Edits of a JSON file's bytes, and of the values in it; of its lines where it is a list."""
    rows = value if path.suffix == ".jsonl" else [value]

    def text(edits):
        return "\n".join(changed_json(row, edits[i :: len(rows)]) for i, row in enumerate(rows))

    whole = text([]).encode()

    def put(content):
        path.write_bytes(content)
        return read()

    check(put(whole))
    fuzz(f"{path.name}, bytes", EDITS, lambda edits: put(damaged(whole, edits)), check, slow)
    fuzz(f"{path.name}, values", JSON_EDITS, lambda edits: put(text(edits).encode()), check, slow)


def fuzz_npz(path, arrays, read, check):
    """Edits of a file of arrays, and of its arrays under a checksum that agrees."""
    np.savez(path, **arrays)
    whole = path.read_bytes()
    check(read())

    def put(edits):
        path.write_bytes(damaged(whole, edits))
        return read()

    def put_arrays(edits):
        name, *edits = edits
        with zipfile.ZipFile(path, "w") as archive:
            for each, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                content = buffer.getvalue()
                archive.writestr(
                    f"{each}.npy", damaged(content, edits) if each == name else content
                )
        return read()

    fuzz(f"{path.name}, bytes", EDITS, put, check)
    names = st.sampled_from(sorted(arrays))
    inner = st.tuples(names, EDITS).map(lambda pair: [pair[0], *pair[1]])
    fuzz(f"{path.name}, arrays", inner, put_arrays, check)


def test_config(tmp_path):
    """What is read can be compared, written again, and made into a schedule or refused."""
    value = json.loads((RUN / "config.json").read_text())
    value["schedule"] |= {"schedule_parameters": {"beta": 0.1}, "times": [0.1, 1.0]}

    def read():
        config = saved_config.read(tmp_path)
        saved_config.text_of(config)
        saved_config.differences(config, Config())
        config.check()
        config.schedule.build()
        config.model.build(3).check(8, 8, 3)
        return config

    def check(config):
        assert isinstance(config, Config)
        assert config.schedule.times is None or len(config.schedule.times) >= 1

    fuzz_json(tmp_path / "config.json", value, read, check)


def test_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()[:4]]
    rows[-1] |= {metrics.FRACTION: 0.5, f"{metrics.TRAINING}/0-1": 1.0}

    def read():
        records = metrics.read_metrics(path)
        columns = [metrics.column(records, name) for name in ("step", "loss", metrics.FRACTION)]
        return records, [*columns, *metrics.bands(records, metrics.TRAINING).values()]

    def check(found):
        records, columns = found
        assert all(isinstance(record["step"], int) for record in records)
        assert all(each.shape == (len(records),) for each in columns)

    fuzz_json(path, rows, read, check)


def test_schedule(tmp_path):
    path = tmp_path / "schedule.json"

    def check(times):
        assert len(times) >= 2
        assert all(isinstance(time, float) and time > 0 for time in times)

    fuzz_json(path, {"time": [0.1, 0.5, 1.0, 2.0]}, lambda: read_times(path), check)


def test_results(tmp_path, monkeypatch):
    """A folder of results is known as that of a study, or left alone."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "regimes" / "a"
    folder.mkdir(parents=True)
    value = {"settings": {"data": "a.npy", "data_dir": None}, "Lambda": 1.0, "files": ["a.png"]}

    def read():
        found = regimes.default_folder(regimes.Options("a.npy"))
        study.require_own(folder)
        return found, study._written_before(folder)

    def check(found):
        assert found[0].parent == Path("runs/regimes")
        assert set(found[1]) <= set(study.FILES)

    fuzz_json(folder / "result.json", value, read, check)


def test_settings_of_an_experiment(tmp_path):
    wanted = {"run": "a", "seed": 0, "batch": 4, "watch": [1, 2]}

    def read():
        (tmp_path / "trunks-0-4.npz").write_bytes(b"")
        forking.claim(tmp_path, wanted)
        lock.release(tmp_path)
        return json.loads((tmp_path / "settings.json").read_text())

    def check(claimed):
        assert claimed == wanted

    fuzz_json(tmp_path / "settings.json", wanted, read, check)


def test_classifier(tmp_path):
    shape, names = (8, 8, 3), ("a", "b")
    model = classifier.Classifier(2)
    like = jax.eval_shape(lambda: classifier.initial_params(model, jax.random.key(0), shape))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    kept = classifier.TrainedClassifier(
        params=params, mean=np.zeros(3, np.float32), class_names=names, shape=shape,
        accuracy=0.9, interval=(0.8, 1.0), held_out=10, settings={"seed": 0},
    )  # fmt: skip
    classifier.save(tmp_path, kept)
    value = json.loads((tmp_path / "classifier.json").read_text())

    def check(found):
        assert isinstance(found, classifier.TrainedClassifier)
        assert found.mean.shape == found.shape[2:]

    path, whole = tmp_path / "classifier.msgpack", (tmp_path / "classifier.msgpack").read_bytes()
    described = tmp_path / "classifier.json"
    fuzz_json(described, value, lambda: classifier.load(tmp_path), check, slow=5)

    def put(edits):
        """Parameters of which classifier.json has the checksum."""
        path.write_bytes(damaged(whole, edits))
        changed = value | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        described.write_text(json.dumps(changed))
        return classifier.load(tmp_path)

    fuzz("classifier.msgpack", EDITS, put, check, slow=5)


def test_moments(tmp_path):
    """They make a start of the run's shape, or there are none."""
    schedule, shape = linear_schedule(40), (4, 4, 3)
    arrays = {
        "mean_image": np.full(shape, 0.5, np.float32),
        "mode": np.full(shape, 0.1, np.float32),
        "eigenvalue": 2.0,
        "trace": 3.0,
        "fingerprint": "abc",
    }

    def read():
        make = moments.start_of(tmp_path)
        return make and make(schedule)

    def check(start):
        assert start is None or isinstance(start, GaussianStart)

    fuzz_npz(tmp_path / moments.NAME, arrays, read, check)


def test_batches_of_an_experiment(tmp_path):
    path = tmp_path / "trunks.npz"
    arrays = {
        "trunk": np.zeros((4, 2, 2, 1), np.float32),
        "same_class": np.ones((4, 3), bool),
        "same_point": np.ones((4, 3), bool),
        "label": np.zeros(4, np.int64),
        "index": np.zeros(4, np.int64),
        "distance": np.zeros(4),
        "second": np.ones(4),
        "path": np.zeros((4, 2), np.int64),
    }

    def check(found):
        assert isinstance(found, commitment.Outcomes)

    fuzz_npz(path, arrays, lambda: commitment.load(path), check)
