"""Names of what is computed: the request itself, written so that it can be read back.

    mnist-1f3c9a2b.exact.ancestral.200.7.0   a trunk: denoiser, sampler, calls, seed, index
    TRUNK.231-4                              that which goes on as clone 4 from step 231
    TRUNK~forks.231.32.0                     32 clones from there, from number 0 on
    TRUNK~uturns.231.8.i5                    image 5 up to step 231 and back, 8 times
    TRUNK~samples.16                         16 samples, from this index on

So a server that was started anew knows what is asked for, and gives the same bytes.
"""

import re
from dataclasses import dataclass

from diffusion_jax.errors import UserError

MOST = 2**31 - 1  # of any number in them
MOST_BRANCHES = 8
MOST_CLONES = 128
MOST_CLONE = 1_000_000
_NAME = r"[a-z0-9_-]+"
_BASE = re.compile(rf"({_NAME})\.({_NAME})\.({_NAME})\.(\d+)\.(\d+)\.(\d+)((?:\.\d+-\d+)*)")
_REST = {
    "": re.compile(""),
    "forks": re.compile(r"(\d+)\.(\d+)\.(\d+)"),
    "uturns": re.compile(r"(\d+)\.(\d+)\.(i\d+|u[0-9a-f]{32})"),
    "samples": re.compile(r"(\d+)"),
}


@dataclass(frozen=True)
class TrunkId:
    """A trunk: sample number `index` of a seed, or from its forks on a clone.

    Attributes:
      model: id of the model.
      denoiser: name of the denoiser.
      sampler: name of the sampler.
      calls: of the denoiser.
      seed: of the noise.
      index: of the sample, as `sampling.sample` numbers them.
      branches: at each step (of the whole schedule) the clone as which it goes on, descending.
    """

    model: str
    denoiser: str
    sampler: str
    calls: int
    seed: int
    index: int
    branches: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        words = (self.model, self.denoiser, self.sampler, self.calls, self.seed, self.index)
        return ".".join([*map(str, words), *(f"{step}-{clone}" for step, clone in self.branches)])


@dataclass(frozen=True)
class ForkId:
    """The clones first..first + clones - 1 of a trunk's state at a step."""

    trunk: TrunkId
    step: int
    clones: int
    first: int

    def __str__(self) -> str:
        return f"{self.trunk}~forks.{self.step}.{self.clones}.{self.first}"


@dataclass(frozen=True)
class TurnId:
    """An image taken up to a step and back: `image` is i and its number, or u and a digest."""

    trunk: TrunkId
    step: int
    returns: int
    image: str

    def __str__(self) -> str:
        return f"{self.trunk}~uturns.{self.step}.{self.returns}.{self.image}"


@dataclass(frozen=True)
class SampleId:
    """The samples index..index + count - 1 of a seed."""

    trunk: TrunkId
    count: int

    def __str__(self) -> str:
        return f"{self.trunk}~samples.{self.count}"


Id = TrunkId | ForkId | TurnId | SampleId


def parse(kind: type[Id], text: str) -> Id:
    """The id that a text is.

    Raises:
      UserError: it is none of this kind.
    """
    base, _, rest = text.partition("~")
    name, _, tail = rest.partition(".")
    expected = {TrunkId: "", ForkId: "forks", TurnId: "uturns", SampleId: "samples"}[kind]
    front, back = _BASE.fullmatch(base), _REST[expected].fullmatch(tail)
    if front is None or back is None or name != expected or len(text) > 500:
        raise _foreign(kind, text)
    words: list[str] = [front[1], front[2], front[3]]
    numbers = (int(front[4]), int(front[5]), int(front[6]))
    pairs = [each.split("-") for each in front[7].split(".")[1:]]
    branches = tuple((int(step), int(clone)) for step, clone in pairs)
    found = [*numbers, *(number for pair in branches for number in pair)]
    found += [int(word) for word in back.groups() if word.isdigit()]
    if max(found) > 2**32 - 1:
        raise _foreign(kind, text)
    model, denoiser, sampler = words
    trunk = TrunkId(model, denoiser, sampler, *numbers, branches=branches)
    made = _made(kind, trunk, back.groups())
    if str(made) != text:  # other scripts' digits, or zeros before them
        raise _foreign(kind, text)
    return made


def _foreign(kind: type[Id], text: str) -> UserError:
    return UserError(f"'{text[:80]}' is no id of {NOUNS[kind]} that this server gives")


def _made(kind: type[Id], trunk: TrunkId, words: tuple[str, ...]) -> Id:
    if kind is TrunkId:
        return trunk
    if kind is SampleId:
        return SampleId(trunk, int(words[0]))
    if kind is ForkId:
        return ForkId(trunk, *map(int, words))
    return TurnId(trunk, int(words[0]), int(words[1]), words[2])


NOUNS: dict[type[Id], str] = {
    TrunkId: "a trunk",
    ForkId: "a fork",
    TurnId: "a U-turn",
    SampleId: "samples",
}
