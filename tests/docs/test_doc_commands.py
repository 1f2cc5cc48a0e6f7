"""Every command in the documentation is one that its own parser takes; every option exists."""

import dataclasses
import importlib
import inspect
import re
import shlex
import sys
import typing
from functools import cache
from itertools import takewhile

import doc_pages
import pytest
from doc_pages import ROOT

from diffusion_jax.errors import UserError
from diffusion_jax.presets import PRESETS
from diffusion_jax.training import saved_config
from experiments import command, options
from experiments.__main__ import COMMANDS

# Programs of others, whose own options are not ours to check.
TOOLS = {
    *("python", "python3", "pip", "git", "cd", "export", "pytest", "ruff", "mypy", "mkdocs"),
    *(
        "jupytext",
        "jupyter",
        "pre-commit",
        "pip-audit",
        "schemathesis",
        "xprof",
        "curl",
        "source",
        "du",
    ),
}
FOREIGN = {"--signal"}  # SLURM's, named in the text by itself
# What starts a command elsewhere or in another way.
LAUNCHERS = ("./launch.sh", "srun", "mpirun", "nohup")


class Asked(BaseException):
    """What a command told the parser, or was told; no Exception, so that nobody handles it."""


def commands(language, text):
    """The commands of a block, each a list of words, without comments and what starts them."""
    if language == "console":  # the other lines are output
        text = "".join(line[2:] for line in text.splitlines(True) if line.startswith("$ "))
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        parts = [[]]
        for word in lexer:
            if re.fullmatch(r"[;&|]+", word):
                parts.append([])
            else:
                parts[-1].append(word)
        yield from filter(None, map(_plain, parts))


def _plain(words):
    """A command without what is assigned before it, what starts it, and where its output goes."""
    first = next((at for at, word in enumerate(words) if not re.match("[A-Z_0-9]+=", word)), None)
    words = [] if first is None else words[first:]
    if words and words[0] in LAUNCHERS:
        programs = (at for at, word in enumerate(words) if word in TOOLS | {"diffusion-jax"})
        words = words[next(programs, 0) :]
    ends = (at for at, word in enumerate(words) if re.fullmatch("[<>]+", word))
    return words[: next(ends, None)]


def module_of(words):
    """The module in `experiments` that a command runs, and its arguments; None for others'."""
    if words[0] == "diffusion-jax":
        return COMMANDS[words[1]], words[2:]
    if words[0] in ("python", "python3") and words[1:2] == ["-m"]:
        package, _, name = words[2].partition(".")
        if package == "experiments" and name:
            return name, words[3:]
    return None


def stopping(monkeypatch, name, words, stop):
    """What a command gives to `stop` in the place of the parser."""
    try:
        module = importlib.import_module(f"experiments.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        pytest.skip(f"{name} needs PyTorch")
    assert hasattr(module, "parse"), f"{name} takes no options"
    with monkeypatch.context() as patch:
        patch.setattr(command, "parse", stop)
        if module.parse is options.parse:
            patch.setattr(module, "parse", stop)
        patch.setattr(saved_config, "read", lambda _: PRESETS["sample"])
        patch.setattr(sys, "argv", [name, *words])
        with pytest.raises(Asked) as asked:
            inspect.unwrap(module.main)()
    return asked.value.args[0]


def parsed(monkeypatch, name, words):
    """The options that a command reads from its words; it is not run."""

    def stop(*given, **keywords):
        raise Asked(options.parse(*given, **keywords))

    return stopping(monkeypatch, name, words, stop)


@cache
def option_names(name):
    """The options of a command, --name."""

    def stop(kind, *_, **__):
        raise Asked(kind)

    return set(_fields(stopping(pytest.MonkeyPatch(), name, [], stop))) | {"--help"}


def _fields(kind):
    """--name of each field of a dataclass that is no positional argument, as `options` reads it."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):  # a union
        for each in typing.get_args(kind):
            yield from _fields(each)
        return
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], field.name.replace("_", "-")
        if typing.get_origin(hint) is typing.Annotated:
            if "Positional" in repr(hint.__metadata__):
                continue
            hint = hint.__origin__
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint)
        else:
            yield f"--{name}"
            if hint is bool:
                yield f"--no-{name}"


def runnable():
    """The commands in `experiments` that take options."""
    files = [*(ROOT / "experiments").glob("*.py"), *(ROOT / "experiments").glob("*/*.py")]
    for path in files:
        source = path.read_text()
        if 'if __name__ == "__main__"' in source and re.search(r"[^.]\bparse\(", source):
            yield ".".join(path.relative_to(ROOT / "experiments").with_suffix("").parts)


def command_of(words):
    """The command that an option in the text belongs to; None where no command is named."""
    for word in takewhile(lambda word: not word.startswith("-") or word == "-m", words):
        name = word.removeprefix("experiments.")
        name = COMMANDS.get(name, name)
        if (ROOT / "experiments" / f"{name.replace('.', '/')}.py").exists():
            return name
    return None


def unknown_options(text):
    """The options in a span of code that no command has, or that the one it names has not."""
    words = text.split()
    if words[:1] and words[0] in TOOLS - {"python", "python3"}:
        return []
    found = [word.partition("=")[0] for word in words if re.match("--[a-z][a-z-]*(=|$)", word)]
    if not found:
        return []
    name = command_of(words)
    names = [name] if name else sorted(runnable())
    known = set().union(*map(option_names, names)) | FOREIGN
    return [
        f"`{text}`: {name or 'no command'} has {option}" for option in found if option not in known
    ]


BLOCKS = [
    pytest.param(language, text, id=f"{path}:{line}")
    for path in doc_pages.paths()
    for line, language, text in doc_pages.page(path).code
    if language in doc_pages.SHELL
]


@pytest.mark.parametrize(("language", "text"), BLOCKS)
def test_commands_are_taken_by_their_own_parsers(language, text, monkeypatch):
    for words in commands(language, text):
        ours = module_of(words)
        if ours is not None:
            parsed(monkeypatch, *ours)
        else:
            assert words[0] in TOOLS or (ROOT / words[0]).is_file(), f"what is {words[0]}?"
            for word in words:  # what a tool is pointed at
                assert not word.startswith(("tests/", "docs/")) or (ROOT / word).exists()


@pytest.mark.parametrize("path", doc_pages.paths())
def test_options_that_are_named_exist(path):
    spans = [text for _, text in doc_pages.page(path).spans]
    assert not [wrong for text in spans for wrong in unknown_options(text)]


@pytest.mark.parametrize("path", doc_pages.paths())
def test_commands_that_are_named_exist(path):
    named = re.findall(r"python -m experiments\.([a-z_.]*[a-z_])", (ROOT / path).read_text())
    assert not set(named) - set(runnable()) - {"tools.memorisation_cell"}


def test_commands_are_told_from_what_is_around_them():
    text = (
        "export A_1=b C=d   # e --f\n# g\n"
        "A=b EXTRAS=c srun -n 1 -k ./launch.sh python -m experiments.sample \\\n  x --y 'a b' > z\n"
        ".ci/run && diffusion-jax train --steps 3; git log | cat\n"
    )
    assert list(commands("", text)) == [
        ["export", "A_1=b", "C=d"],
        ["python", "-m", "experiments.sample", "x", "--y", "a b"],
        [".ci/run"],
        ["diffusion-jax", "train", "--steps", "3"],
        ["git", "log"],
        ["cat"],
    ]
    assert list(commands("console", "$ git log\ncommit 1\n")) == [["git", "log"]]


@pytest.mark.parametrize(
    "line",
    [
        "python -m experiments.sample runs/sample --num-sample",
        "python -m experiments.sample runs/sample --num-samples many",
        "python -m experiments.sample",
        "python -m experiments.train_lsun --preset none",
        "python -m experiments.train_lsun --resume RUN_DIR --sizes 3",
        "python -m experiments.paper.classes 3",
        "diffusion-jax convert to-torch runs/original",
    ],
)
def test_a_wrong_command_is_refused(line, monkeypatch, capsys):
    with pytest.raises((SystemExit, UserError)):
        parsed(monkeypatch, *module_of(line.split()))


def test_a_wrong_option_is_found():
    assert unknown_options("--no-such-option 3")
    assert unknown_options("sample --learning-rate 3")  # train's
    assert unknown_options("python -m experiments.sample --run-dir RUN_DIR")  # a bare word there
    assert not unknown_options("train --learning-rate=3 --no-faithful --remat")
    assert not unknown_options("--num-samples N --help")
    assert not unknown_options("pip freeze --exclude-editable")
    assert not unknown_options("XLA_FLAGS=--xla_gpu_deterministic_ops=true")
