"""launch.sh: which environment it makes and what it installs; no interpreter here is a real one."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
# A Python {version} that starts, makes environments and installs nothing.
case "$1 $2 $3" in
  "-c "*) echo {version} ;;
  "-m venv --clear")
    rm -rf "$4"; mkdir -p "$4/bin"; touch "$4/pyvenv.cfg"
    cp "$0" "$4/bin/python"; echo "#!$4/bin/python" > "$4/bin/pip"
    echo "made with {version}" >> "$LOG" ;;
  "-m pip install")
    [ -z "$SLOW" ] || sleep 1
    for last; do :; done; echo "installed ${{last##*/}}" >> "$LOG"; [ -z "$BREAK" ] ;;
esac
"""
BROKEN = "#!/bin/sh\necho 'not found' >&2\nexit 127\n"


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


class Checkout:
    """A copy of what launch.sh reads, in a folder with interpreters of the test's own."""

    def __init__(self, folder):
        self.root, self.bin, self.log = folder / "checkout", folder / "bin", folder / "log"
        self.root.mkdir()
        self.bin.mkdir()
        self.venv = self.root / ".venv"
        for name in ("launch.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        for command in ("pytest", "ruff", "mypy", "diffusion-jax"):
            script(self.bin / command, "#!/bin/sh\n")
        for minor in range(11, 31):  # before the machine's own
            self.python(f"python3.{minor}", None)
        self.python("python3", "3.11")

    def python(self, name, version):
        script(self.bin / name, PYTHON.format(version=version) if version else BROKEN)

    def start(self, command="true", **variables):
        env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "LOG": str(self.log),
            "HOME": str(self.root),
        }
        return subprocess.Popen(
            [self.root / "launch.sh", *command.split()],
            env=env | {name: str(value) for name, value in variables.items()},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command="true", **variables):
        """What was done, a line each, and stderr."""
        self.log.write_text("")
        process = self.start(command, **variables)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        return self.log.read_text().splitlines(), stderr

    def refusal(self, command="true", **variables):
        """The one line of a launch.sh that refuses, having done nothing."""
        self.log.write_text("")
        process = self.start(command, **variables)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        assert self.log.read_text() == ""
        assert stderr.startswith("launch.sh: ")
        assert stderr.count("\n") == 1
        return stderr


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def extras(lines):
    """What the only installation of a log installed beside the project."""
    (line,) = (line for line in lines if line.startswith("installed"))
    return line.partition("[")[2].rstrip("]")


@pytest.mark.parametrize(
    ("command", "want"),
    [
        ("python -m experiments.train_lsun --preset sample", ""),
        ("python -m experiments", ""),
        ("python -c pytest", ""),
        ("diffusion-jax train", ""),
        ("true convert pytest", ""),
        ("pytest tests", "test,torch"),
        ("python -m pytest", "test,torch"),
        ("python3 -W error -X dev -m pytest -n 0", "test,torch"),
        ("python -um pytest", "test,torch"),
        ("ruff check .", "test"),
        ("python -Im mypy", "test"),
        ("python -m experiments.parity", "torch"),
        ("python -W error -m experiments.parity", "torch"),
        ("python -Werror -mexperiments.parity", "torch"),
        ("python -m experiments parity", "torch"),
        ("python experiments/parity.py", "torch"),
        ("diffusion-jax convert from-torch a.pt", "torch"),
        ("python -m experiments.convert", "torch"),
        ("python -m experiments.gpu_check", "torch"),
        ("python -m experiments.tools.benchmark --quick", "torch"),
        ("python -m experiments.benchmark", "torch"),
        ("python -m experiments.tools.regimes_speed", "torch"),
        ("python -m experiments.tools.gpu_report", "gpu-report"),
    ],
)
def test_a_command_gets_what_it_needs(checkout, command, want):
    lines, stderr = checkout.run(command)
    assert lines[0] == "made with 3.11"
    assert extras(lines) == want
    assert stderr.count("\n") == 1
    assert f"making {checkout.venv} with Python 3.11" in stderr
    assert "several minutes" in stderr if "torch" in want else "a minute or two" in stderr


def test_torch_is_tested_with_on_3_11_alone_and_not_beside_cuda12(checkout):
    checkout.python("python3", "3.12")
    assert extras(checkout.run("pytest", VENV=".venv-new")[0]) == "test"
    assert extras(checkout.run("pytest", VENV=".venv-new", EXTRAS="torch")[0]) == "test,torch"
    checkout.python("python3", "3.11")
    assert extras(checkout.run("pytest", EXTRAS="cuda12")[0]) == "cuda12,test"
    assert checkout.run("pytest")[0] == []
    own = {"VENV": ".venv-gpu", "EXTRAS": "gpu-report"}
    assert extras(checkout.run("pytest", **own)[0]) == "gpu-report,test"


def test_extras_add_up_and_alternating_commands_install_once(checkout):
    assert extras(checkout.run("true", EXTRAS="test, cuda13")[0]) == "cuda13,test"
    lines, stderr = checkout.run("pytest")
    assert lines == ["installed checkout[cuda13,test,torch]"]
    assert f"bringing {checkout.venv} up to date" in stderr
    for command in ("true", "pytest", "ruff check", "diffusion-jax parity"):
        assert checkout.run(command) == ([], "")
    assert "'cuda'; there are cuda12, cuda13, gpu-report" in checkout.refusal(EXTRAS="cuda")


def test_new_constraints_are_installed(checkout):
    checkout.run()
    with (checkout.root / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert checkout.run()[0] == ["installed checkout"]


def test_an_installation_that_failed_is_tried_again(checkout):
    checkout.run()
    process = checkout.start("diffusion-jax parity", BREAK=1)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the installation failed" in stderr
    # What could not be had is not asked for by others.
    assert checkout.run()[0] == ["installed checkout"]


def test_another_python_is_taken_where_python3_is_too_old_or_does_not_start(checkout):
    for version in ("3.9", None):
        checkout.python("python3", version)
        checkout.python("python3.12", "3.12")
        checkout.python("python3.11", "3.11")
        shutil.rmtree(checkout.venv, ignore_errors=True)
        assert checkout.run()[0][0] == "made with 3.12"
    # The environment serves whatever has become of the interpreters.
    checkout.python("python3.12", None)
    assert checkout.run() == ([], "")


def test_without_any_python_it_says_so(checkout):
    checkout.python("python3", None)
    assert "found no Python 3.11 or newer" in checkout.refusal()
    assert "PYTHON=/path/to/python" in checkout.refusal()


def test_a_named_python_is_taken_or_refused(checkout):
    checkout.python("old", "3.10")
    checkout.python("broken", None)
    checkout.python("other", "3.13")
    assert "PYTHON=old is Python 3.10; 3.11" in checkout.refusal(PYTHON="old")
    assert "PYTHON=broken does not start" in checkout.refusal(PYTHON="broken")
    assert checkout.run(PYTHON=checkout.bin / "other")[0][0] == "made with 3.13"


def test_an_environment_half_made_broken_or_moved_is_made_anew(checkout):
    checkout.run("true", EXTRAS="test")
    interpreter, pip = checkout.venv / "bin" / "python", checkout.venv / "bin" / "pip"
    for spoil in (
        pip.unlink,
        interpreter.unlink,
        lambda: script(interpreter, BROKEN),
        lambda: shutil.rmtree(checkout.venv / "bin"),
    ):
        spoil()
        assert checkout.run()[0] == ["made with 3.11", "installed checkout"]
    moved = checkout.root.rename(checkout.root.with_name("elsewhere"))
    checkout.root, checkout.venv = moved, moved / ".venv"
    assert checkout.run()[0] == ["made with 3.11", "installed elsewhere"]
    assert checkout.run()[0] == []
    shutil.copytree(checkout.venv, moved / ".venv-copy")
    assert checkout.run(VENV=".venv-copy")[0] == ["made with 3.11", "installed elsewhere"]


def test_what_is_no_environment_is_left_alone(checkout):
    folder = checkout.root / "work"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    assert "work is no virtual environment and not empty" in checkout.refusal(VENV="work")
    assert "thesis.tex is no virtual" in checkout.refusal(VENV="work/thesis.tex")
    assert (folder / "thesis.tex").read_text() == "years"
    checkout.run()
    checkout.python("../checkout/.venv/bin/python", "3.10")
    assert "is an environment of Python 3.10" in checkout.refusal()
    (folder / "thesis.tex").unlink()
    assert checkout.run(VENV="work/")[0] == ["made with 3.11", "installed checkout"]


@pytest.mark.parametrize(
    ("version", "command", "asked", "pair"),
    [
        ("3.11", "true", "cuda12,cuda13", "cuda12 and cuda13"),
        ("3.12", "true", "torch,cuda12", "cuda12 and torch"),
        ("3.11", "python -m experiments.parity", "cuda12", "cuda12 and torch"),
        ("3.11", "true", "gpu-report,cuda13", "gpu-report and cuda13"),
        ("3.12", "true", "gpu-report,cuda12", "gpu-report and cuda12"),
    ],
)
def test_cuda_12_and_13_do_not_meet(checkout, version, command, asked, pair):
    checkout.python("python3", version)
    sentence = checkout.refusal(command, EXTRAS=asked)
    assert f"{pair} do not go into one environment" in sentence
    assert "make another environment: VENV=.venv-" in sentence
    # Nor one after the other.
    first = sorted(pair.split(" and "), key="cuda12".__eq__)
    checkout.run("true", EXTRAS=first[0])
    assert pair in checkout.refusal("true", EXTRAS=first[1])
    checkout.run("true", EXTRAS=first[1], VENV=".venv-other")


@pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock")
def test_two_commands_started_together_install_once(checkout):
    first = checkout.start(SLOW=1)
    while not checkout.log.exists():
        time.sleep(0.01)
    second = checkout.start(SLOW=1)
    stderr = [process.communicate(timeout=60)[1] for process in (first, second)]
    assert first.returncode == second.returncode == 0
    assert checkout.log.read_text().splitlines() == ["made with 3.11", "installed checkout"]
    assert "waiting for another command" in stderr[1]


def test_the_command_runs_in_the_environment_with_its_status(checkout):
    checkout.run()
    script(checkout.venv / "bin" / "shown", '#!/bin/sh\necho "$VIRTUAL_ENV $1"\nexit 7\n')
    process = checkout.start("shown twice")
    assert process.communicate(timeout=60)[0] == f"{checkout.venv} twice\n"
    assert process.returncode == 7
    assert os.access(ROOT / "launch.sh", os.X_OK)
