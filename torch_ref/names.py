"""What names tell about weights: whether they are an average, raw, or an optimizer's."""

import re

Parts = tuple[str, ...]  # of a name, between its dots

_MODELS = ("model", "net", "network", "unet", "denoiser", "params", "weights")
_EMA = {"ema", "ewma", "swa", "avg"}
_AVERAGE = _EMA | {"average", "averages", "averaged", "averaging", "shadow", "shadows", "polyak"}
_AVERAGE |= {one + two for name in _MODELS for one, two in [("ema", name), (name, "ema")]}
# With one of these an average's word tells what is none: pre_ema, ema_free, w/o ema.
_NOT = {"no", "non", "not", "un", "without", "wo", "o", "pre", "before", "prior", "free", "less"}
_NOT |= {"off", "disabled"}
# Alone, these tell what is none.
_RAW = {"online", "raw", "current", "collected", "stored", "backup", "live", "unaveraged"}
_RAW |= {f"{no}{ema}" for no in ("no", "non", "pre") for ema in _EMA}
# What an optimizer keeps averages of besides weights, and what else it has of a weight's shape.
_MOMENTS = {"grad", "grads", "gradient", "gradients", "momentum", "variance", "hessian"}
_MOMENTS |= {"sq", "square", "squared"}
_BUFFERS = {"momentum_buffer", "grad", "grads"}
_OPTIMIZER = re.compile(r"opt|optim|\w*optimi[sz]er\w*|optim_\w+")


def words(part: str) -> list[str]:
    """A part's words in lower case, as "_", "-", digits and capitals divide it: netEMA, net ema."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)]


def telling(path: Parts) -> int:
    """How many parts of a name lead to the one that tells an average; 0 if none does.

    The last part that says anything counts: of ema.online_model, online.
    """
    for end in range(len(path), 0, -1):
        said = set(words(path[end - 1]))
        if said & _AVERAGE:
            return 0 if said & _NOT else end
        if said & _RAW or _is_optimizers(path[end - 1]):
            return 0
    return 0


def is_no_weight(path: Parts) -> bool:
    """Whether a name is that of an optimizer's tensor, but no average of weights kept in it."""
    if any(map(_is_moment, path)):
        return True
    return any(map(_is_optimizers, path)) and not telling(path)


def _is_optimizers(part: str) -> bool:
    return _OPTIMIZER.fullmatch(part.lower()) is not None


def _is_moment(part: str) -> bool:
    said = set(words(part))
    return part in _BUFFERS or {"exp", "avg"} <= said or bool(said & _AVERAGE and said & _MOMENTS)
