"""No file of the project unpickles, or runs as a program, what it reads."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("diffusion_jax", "experiments", "torch_ref")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
# Modules that unpickle, or start what is named in a string.
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Readers that can unpickle, and whose default was to do so: what they must be told.
GUARDED = {
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}
FORBIDDEN = {
    "os.system",
    "pandas.read_pickle",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}


def findings(source):
    """What a module's source does that may run what a file holds, as (line, what)."""
    tree = ast.parse(source)
    names = {}  # as the module calls them: what they are

    def full(node):
        if isinstance(node, ast.Attribute):
            return f"{full(node.value)}.{node.attr}"
        return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
                if top in MODULES:
                    yield node.lineno, f"imports {top}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if (node.module or "").split(".")[0] in MODULES:
                yield node.lineno, f"imports {node.module}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = full(node.func)
        given = {word.arg: word.value for word in node.keywords}
        if name in BUILTINS | FORBIDDEN:
            yield node.lineno, f"calls {name}"
        elif name in GUARDED:
            option, safe = GUARDED[name]
            value = given.get(option)
            if not (isinstance(value, ast.Constant) and value.value is safe):
                yield node.lineno, f"calls {name} without {option}={safe}"
        value = given.get("shell")
        if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
            yield node.lineno, f"calls {name} through a shell"
        for option, unsafe in (("allow_pickle", True), ("weights_only", False)):
            value = given.get(option)
            if name not in GUARDED and isinstance(value, ast.Constant) and value.value is unsafe:
                yield node.lineno, f"calls {name} with {option}={unsafe}"


def test_nothing_runs_what_a_file_holds():
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in SOURCES}
    # The places where a file's reader could are among those looked at.
    assert "torch.load(" in texts["torch_ref/files.py"]
    assert "np.load(" in texts["diffusion_jax/data/arrays.py"]
    assert [(name, *found) for name, text in texts.items() for found in findings(text)] == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "imports pickle"),
        ("def f():\n    from joblib import load", "imports joblib"),
        ("import os.path\nimport marshal as m", "imports marshal"),
        ("import numpy as np\nnp.load(path)", "without allow_pickle=False"),
        ("from numpy import load\nload(path, allow_pickle=flag)", "without allow_pickle=False"),
        ("import numpy.lib.format as f\nf.read_array(x)", "without allow_pickle=False"),
        ("import torch\ntorch.load(path)", "without weights_only=True"),
        ("import torch as t\nt.load(path, weights_only=False)", "without weights_only=True"),
        ("import yaml\nyaml.load(text)", "calls yaml.load"),
        ("eval(text)", "calls eval"),
        ("reader(path, allow_pickle=True)", "with allow_pickle=True"),
        ("import subprocess\nsubprocess.run(words, shell=True)", "through a shell"),
    ],
)
def test_what_it_looks_for_is_seen(source, what):
    ((_, found),) = findings(source)
    assert what in found


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load(path, mmap_mode='r', allow_pickle=False)",
        "import torch\ntorch.load(file, map_location='cpu', weights_only=True)",
        "import re\nmodel.eval()\nlowered.compile()\nre.compile(text)\njson.load(file)",
    ],
)
def test_what_is_harmless_is_left_alone(source):
    assert list(findings(source)) == []
