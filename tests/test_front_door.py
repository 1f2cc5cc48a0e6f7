"""What `import diffusion_jax` gives, and what the old names give still."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import diffusion_jax as dj
from experiments import __main__ as commands

ROOT = Path(__file__).parents[1]


def python(*arguments, cwd=None):
    words = [sys.executable, *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, timeout=100)


def test_every_name_of_the_stub_is_there():
    stub = ast.parse((ROOT / "diffusion_jax" / "__init__.pyi").read_text())
    names = [each.name for node in stub.body for each in getattr(node, "names", ())]
    assert 25 <= len(names) <= 44
    assert sorted(names) == sorted(dj.__all__)
    for name in names:
        where = getattr(getattr(dj, name), "__module__", "diffusion_jax.presets")
        assert where.startswith("diffusion_jax.")
    with pytest.raises(AttributeError, match="colour"):
        dj.colour  # noqa: B018


def test_it_opens_at_once():
    heavy = ("jax", "matplotlib", "flax", "scipy", "tensorboard")
    program = (
        "import time; before = time.process_time(); import diffusion_jax, sys\n"
        "assert time.process_time() - before < 1\n"  # a hundredth, unless a heavy one is new
        f"print([n for n in {heavy} if n in sys.modules])"
    )
    assert python("-c", program).stdout == "[]\n"


def test_a_training_imports_nothing_heavy_that_few_need():
    heavy = ("pandas", "sklearn", "mlxtend", "skimage", "matplotlib.pyplot", "torch")
    program = f"import sys, experiments.train_lsun\nprint([n for n in {heavy} if n in sys.modules])"
    assert python("-c", program).stdout == "[]\n"


def test_the_version_is_the_installed_one():
    assert dj.__version__ == version("diffusion-jax")
    assert (ROOT / "diffusion_jax" / "py.typed").exists()


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("diffusion_jax.run", "diffusion_jax.training.run", "load_model"),
        ("experiments.gaussian_mixture", "experiments.paper.gaussian_mixture", "main"),
    ],
)
def test_old_names_work_and_say_the_new_ones(old, new, name):
    done = python("-c", f"from {old} import {name}; print({name}.__name__)")
    assert (done.returncode, done.stdout) == (0, f"{name}\n")
    assert done.stderr == f"note: {old} is now called {new}\n"


def test_an_old_command_runs():
    done = python("-m", "experiments.collapse_definitions", "--help")
    assert done.returncode == 0
    assert "python -m experiments.paper.collapse_definitions" in done.stdout
    assert done.stderr.startswith("note: experiments.collapse_definitions is now called")


def test_all_commands_are_listed_a_line_each(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["diffusion-jax"])
    commands.main()
    lines = capsys.readouterr().out.splitlines()
    files = [*(ROOT / "experiments").glob("*.py"), *(ROOT / "experiments").glob("*/*.py")]
    runnable = [path for path in files if 'if __name__ == "__main__"' in path.read_text()]
    assert len(runnable) > 15
    names = {file: name for name, file in commands.COMMANDS.items()}
    for path in runnable:
        if path.name != "__main__.py":
            shown = names.get(path.stem, f"{path.parent.name}.{path.stem}")
            (line,) = [line for line in lines if line.split()[:1] == [shown]]
            assert len(line.split()) > 3
            assert len(line) <= 110


def test_a_command_runs_under_the_projects_name(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["diffusion-jax", "sample", "--help"])
    with pytest.raises(SystemExit):
        commands.main()
    assert "usage: diffusion-jax sample" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["diffusion-jax", "samples"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2
    assert "there is no command samples" in capsys.readouterr().err


def test_figures_leave_pyplot_alone():
    program = (
        "import sys, matplotlib; before = matplotlib.get_backend(auto_select=False)\n"
        "import diffusion_jax.study, diffusion_jax.training.loop, experiments.cloning_report\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.get_backend(auto_select=False) == before"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=100)
    assert done.returncode == 0


def test_old_names_are_the_same_modules():
    program = (
        "import diffusion_jax as dj, diffusion_jax.run, diffusion_jax.ode_samplers as old\n"
        "from diffusion_jax.training import run\n"
        "assert old.DPMSolver2M is dj.DPMSolver2M\n"
        "assert diffusion_jax.run is run and run.__spec__.name == run.__name__"
    )
    assert python("-c", program).returncode == 0


@pytest.mark.parametrize("command", ["parity", "convert from-torch a.pt"])
def test_without_torch_the_extra_is_named(command, tmp_path):
    program = (
        # As if they were not installed.
        "import sys; sys.modules |= {'torch': None, 'safetensors': None}\n"
        f"sys.argv = {['diffusion-jax', *command.split()]}\n"
        "from experiments.__main__ import main; main()"
    )
    done = python("-c", program, cwd=tmp_path)
    assert done.returncode == 1
    assert re.match(
        "error: this needs (torch|safetensors), of the extra torch: pip install", done.stderr
    )
    assert done.stderr.count("\n") == 1
