"""The weights within what a file holds, found by the UNet's own names however they are wrapped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_jax.errors import UserError
from torch_ref.names import Parts, is_no_weight, telling

StateDict = dict[str, Tensor]
Which = Literal["average", "raw"]

TIME_TABLE = "time_embeddings.time_mlp.0.weight"
# What the names of the UNet's entries begin with.
_ROOTS = {
    *("time_embeddings", "init_conv", "encoder_blocks", "bottleneck_blocks"),
    *("decoder_blocks", "final_block"),
}
# What DataParallel, torch.compile and the like put into names, in front or within.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Where the raw weights are if what is saved as the model is their average: Lightning's, MMEngine's.
_CURRENT, _SWAPPED = "current_model_state", "ema_state_dict"
# What counts an average's updates beside it.
_COUNTS = ("n_averaged", "num_updates", "optimization_step", "initted")
# Names shown of a longer list, and characters of one.
_SHOWN, _LONGEST = 5, 120
# An average whose entries have no names is one of weights if it has such a part of their numbers.
_PART = 10
# Tensors and containers in a file, and parts of a name: few bytes can make endless ones.
_MOST, _DEEPEST = 100_000, 50


@dataclass(frozen=True)
class Weights:
    """The set of weights that was taken of those in a file.

    Attributes:
      state_dict: its entries by their names within the UNet.
      place: what stood in front of the names, keys of dictionaries included, joined by dots.
      kind: which set it is.
      others: the places of the sets that were not taken.
      idle: the places of the averages that were never begun.
    """

    state_dict: StateDict
    place: str
    kind: Literal["average", "raw", "the only ones"]
    others: tuple[str, ...]
    idle: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What was taken, and where the others are."""
        here, there = _under([self.place]), _under(self.others)
        if self.kind == "average":
            other = f"--weights raw takes those {there}" if self.others else "there are no others"
            return f"the average of the weights, {here}; {other}"
        if self.kind == "raw":
            begun = f"the average, {_under(self.idle)}, was never begun"
            return f"the raw weights, {here}; {begun if self.idle else f'the average is {there}'}"
        if self.idle:
            return f"the only weights there are, {here}, of an average that was never begun"
        return f"the only weights there are, {here}; nothing tells whether they are an average"


@dataclass(frozen=True)
class _Entry:
    """A tensor, its name, and how many parts of that are its container's; `named` in a mapping."""

    path: Parts
    tensor: Tensor
    container: int
    named: bool

    @property
    def mapping(self) -> Parts:
        return self.path[: self.container]


@dataclass(eq=False)
class _Set:
    """The entries behind one front; none where these cannot be told."""

    front: Parts
    average: bool = False
    entries: dict[str, _Entry] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return ".".join(self.front)

    @property
    def state_dict(self) -> StateDict:
        return {name: entry.tensor for name, entry in self.entries.items()}


def choose(content: Any, weights: Which = "average", what: str = "the state dict") -> Weights:
    """Finds the weights of a UNet in what a file holds.

    A set of weights is what stands behind one prefix: keys of dictionaries and what wrappers put in
    front of names alike, as in {"ema": {"module.init_conv.weight": ...}}. An average is told by the
    last part of the prefix that says anything ("ema", "averaged", "swa", "shadow" and the like, but
    "online", "raw" or "pre_ema" for what is none), by AveragedModel's count beside it, or by the
    place of the model, whose own weights Lightning and MMEngine then save elsewhere. One that was
    never begun, as its count of updates is 0, is not taken where there are others. An average
    without the fixed table of times has that of the raw weights; one whose names are gone, or have
    lost their dots, has theirs. An optimizer's state is looked through for averages alone.

    Args:
      content: dictionaries, lists and tensors.
      weights: what is taken where there are both. A single set is also taken as the average, and as
        raw unless it is known to be an average.
      what: what errors call the content.

    Raises:
      UserError: no weights, none of those asked for, or several sets of them.
    """
    entries = list(_entries(content, what))
    sets, rest = _sets(entries, _swapped(content))
    raws = _distinct(each for each in sets if not each.average)
    averages = _distinct(each for each in sets if each.average) or _without_names(rest, raws)
    idle = [each for each in averages if _never_begun(each, entries)]
    averages = [each for each in averages if each not in idle]
    if not raws and not averages:
        raws = idle
    candidates = raws if weights == "raw" else averages or raws
    if not candidates and not averages:
        raise UserError(
            f"{what} holds {_described(content)}, and nowhere weights that have names; "
            f"save model.state_dict()"
        )
    places = _under([each.place for each in candidates or averages])
    if not candidates:
        raise UserError(
            f"{what} holds an average alone, {places}, and no raw weights: take the average, "
            f"without --weights raw"
        )
    if len(candidates) > 1:
        raise UserError(
            f"{what} holds several sets of weights, {places}: save the state dict of the one that "
            f"is meant in a file of its own"
        )
    (chosen,) = candidates
    if not chosen.entries:
        raise UserError(
            f"{what} holds an average, {places}, that is not whole, or whose entries have no names "
            f"and do not fit raw weights that have: save the averaged model's state dict"
            + (", or take the raw weights by --weights raw" if averages and raws else "")
        )
    state_dict = chosen.state_dict
    if raws and TIME_TABLE not in state_dict:  # not trained, so not averaged
        state_dict = {n: t for n, t in raws[0].state_dict.items() if n == TIME_TABLE} | state_dict
    kind: Any = "average" if chosen in averages else "raw"
    if not averages and (not idle or chosen in idle):
        kind = "the only ones"
    others = tuple(each.place for each in (*raws, *averages) if each is not chosen)
    return Weights(state_dict, chosen.place, kind, others, tuple(each.place for each in idle))


def listed(names: Sequence[str]) -> str:
    """The first few of some names, fit to be printed, and the number of all."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:_SHOWN]]
    text = ", ".join(n if len(n) <= _LONGEST else f"{n[: _LONGEST - 3]}..." for n in shown)
    return text if len(names) <= _SHOWN else f"{text}, ... ({len(names)} in all)"


def _under(places: Sequence[str]) -> str:
    named = listed([f"'{place}'" for place in places if place])
    bare = "" if all(places) else "without a prefix"
    return " and ".join(each for each in (bare, named and f"under {named}") if each)


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary of {listed([str(key) for key in content]) or 'nothing'}"
    return f"an object of type {type(content).__name__}"


def _entries(content: Any, what: str) -> Iterator[_Entry]:
    """All tensors, and counts of an average's updates, in the order in which they are held.

    Raises:
      UserError: too many, or too deep.
    """
    waiting: list[tuple[Parts, Any, int, bool]] = [((), content, 0, False)]
    for _ in range(_MOST):
        if not waiting:
            return
        path, value, container, named = waiting.pop()
        if len(path) > _DEEPEST:
            break
        if isinstance(value, int):  # a count; nothing but 0 is told from the rest
            value = torch.tensor(bool(value))
        if isinstance(value, Tensor):
            yield _Entry(path, value, container, named)
        elif isinstance(value, Mapping | list | tuple):
            named = isinstance(value, Mapping)
            children = value.items() if isinstance(value, Mapping) else enumerate(value)
            held = [
                ((*path, *str(key).split(".")), child, len(path), named)
                for key, child in children
                if isinstance(child, Tensor | Mapping | list | tuple)
                or (isinstance(child, int) and str(key) in _COUNTS)
            ]
            waiting.extend(reversed(held))
    raise UserError(
        f"{what} holds more than {_MOST:,} objects, or names of more than {_DEEPEST} parts, as no "
        f"weights do; save model.state_dict()"
    )


def _swapped(content: Any) -> str:
    """Where the raw weights are, if anywhere, when the model's place holds their average.

    MMEngine swaps the two as it saves them; its average counts its `steps`.
    """
    held = content.get(_SWAPPED) if isinstance(content, Mapping) else None
    of_mmengine = isinstance(held, Mapping) and ("steps" in held or "message_hub" in content)
    return _SWAPPED if of_mmengine else _CURRENT


def _sets(entries: list[_Entry], swapped: str) -> tuple[list[_Set], list[_Entry]]:
    """The sets of weights, and the tensors that are in none of them.

    A set that is not half as large as another one is a part of something else.
    """
    usable = [
        each
        for each in entries
        if each.named
        and each.path[-1] not in _COUNTS
        and not is_no_weight(each.path)
        and not is_no_weight(each.path[:-1])
    ]
    split = [(entry, parts) for entry in usable if (parts := _split(entry.path))]
    groups = _of_the_unet(split) if split else _of_mappings(usable)
    largest = max((len(group.entries) for group in groups), default=0)
    groups = [group for group in groups if 2 * len(group.entries) >= largest]
    used = {id(entry) for group in groups for entry in group.entries.values()}
    if split:
        named = {id(entry) for entry, _ in split}
        for entry in usable:
            if id(entry) not in named and (group := _owner(entry, groups)):
                group.entries[".".join(entry.path[len(group.front) :])] = entry
                used.add(id(entry))

    counted = {entry.path[:-1] for entry in entries if entry.path[-1:] == ("n_averaged",)}
    in_place = any(group.front[:1] == (swapped,) for group in groups)
    for group in groups:
        models = [i for i, part in enumerate(group.front) if part == "module"]
        group.average = telling(group.front) > 0 or any(group.front[:i] in counted for i in models)
        if in_place and group.front[:1] in [("state_dict",), (swapped,)]:
            group.average = group.front[0] == "state_dict"
    return groups, [entry for entry in entries if id(entry) not in used]


def _split(path: Parts) -> tuple[Parts, str] | None:
    """What is in front of a name of the UNet's, and that name, without wrappers within."""
    for start, part in enumerate(path[:-1]):
        if part in _ROOTS:
            return path[:start], ".".join(_bare(path[start:]))
    return None


def _bare(path: Parts) -> Parts:
    return tuple(part for part in path if part not in _WRAPPERS)


def _of_the_unet(split: list[tuple[_Entry, tuple[Parts, str]]]) -> list[_Set]:
    """The entries by what is in front of their names.

    Only some of the names of one set may have a wrapper in front; but where entries would become
    one, the wrapper tells two sets apart.
    """
    groups: dict[Parts, _Set] = {}
    for key in (_bare, tuple):
        groups = {}
        for entry, (front, name) in split:
            groups.setdefault(key(front), _Set(front)).entries.setdefault(name, entry)
        if sum(len(group.entries) for group in groups.values()) == len(split):
            break
    return list(groups.values())


def _of_mappings(entries: list[_Entry]) -> list[_Set]:
    """The entries of another model, by the dictionaries that hold them."""
    groups: dict[Parts, _Set] = {}
    for entry in entries:
        name = ".".join(_bare(entry.path[entry.container :]))
        groups.setdefault(entry.mapping, _Set(entry.mapping)).entries[name] = entry
    return list(groups.values())


def _owner(entry: _Entry, groups: list[_Set]) -> _Set | None:
    """The set that a strange entry belongs to: the one of its mapping with its prefix.

    None for an average's, and for a counter such as that of the updates.
    """
    counter = entry.tensor.numel() <= 1 and not entry.tensor.is_floating_point()
    owners = [
        group
        for group in groups
        if next(iter(group.entries.values())).mapping == entry.mapping
        and entry.path[: len(group.front)] == group.front
        and not telling(entry.path[len(group.front) : -1])
    ]
    return None if counter else max(owners, key=lambda group: len(group.front), default=None)


def _never_begun(average: _Set, entries: list[_Entry]) -> bool:
    """Whether a count of updates beside it, or in front of it, is 0."""
    return any(
        entry.path[-1] in _COUNTS
        and average.front[: len(entry.path) - 1] == entry.path[:-1]
        and entry.tensor.numel() == 1
        and entry.tensor.dtype in (torch.bool, torch.int32, torch.int64)
        and not entry.tensor.is_meta
        and not entry.tensor
        for entry in entries
        if entry.path
    )


def _distinct(sets: Iterable[_Set]) -> list[_Set]:
    """The sets that are not the same as an earlier one, such as a module that has two names."""
    distinct: list[_Set] = []
    for each in sets:
        if not any(_same(each.state_dict, other.state_dict) for other in distinct):
            distinct.append(each)
    return distinct


def _same(one: StateDict, other: StateDict) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype
        and value.layout == other[name].layout == torch.strided
        and not value.is_meta
        and not other[name].is_meta
        and torch.equal(value, other[name])
        for name, value in one.items()
    )


def _without_names(entries: list[_Entry], raws: list[_Set]) -> list[_Set]:
    """The averages among tensors that have no names of the UNet's, each with its raw weights'.

    What is small beside these is an average of something else, unless it looks like weights.
    """
    found: dict[Parts, dict[Parts, _Entry]] = {}
    for entry in entries:
        if entry.tensor.is_floating_point() and entry.tensor.ndim and not is_no_weight(entry.path):
            front, rest = _nameless(entry.path)
            if front:
                found.setdefault(front, {})[rest] = entry
    raw = raws[0].state_dict if len(raws) == 1 else {}
    sizes = [sum(t.numel() for n, t in each.state_dict.items() if n != TIME_TABLE) for each in raws]
    return [
        _Set(front, True, _named(averaged, raw))
        for front, averaged in found.items()
        if any(e.tensor.ndim > 1 and telling(e.path[:-1]) for e in averaged.values())
        or any(_PART * sum(e.tensor.numel() for e in averaged.values()) >= size for size in sizes)
    ]


def _nameless(path: Parts) -> tuple[Parts, Parts]:
    """What tells an average, and what tells its entries apart: optimizer.state.ema of 0, 1, ..."""
    end = telling(path)
    if end < len(path):
        return path[:end], path[end:]
    start = next((i for i, p in enumerate(path[:-1]) if p.isdecimal() or p in _ROOTS), end - 1)
    return path[:start] + path[-1:], path[start:-1]


def _named(averaged: dict[Parts, _Entry], raw: StateDict) -> dict[str, _Entry]:
    """The entries by the raw weights' names, told by their numbers or by names without dots.

    Empty where neither tells them.
    """
    trained = [name for name in raw if name != TIME_TABLE]
    numbered = all(rest and rest[-1].isdecimal() for rest in averaged)
    in_order = sorted(averaged, key=lambda rest: [(len(part), part) for part in rest])
    entries = [averaged[rest] for rest in in_order]
    shapes = [entry.tensor.shape for entry in entries]
    for names in (trained, list(raw)):
        if numbered and shapes == [raw[name].shape for name in names]:
            return dict(zip(names, entries, strict=True))
        spelt = {"".join(rest): entry for rest, entry in averaged.items()}
        first = "init_convweight"
        for start in [name.removesuffix(first) for name in spelt if name.endswith(first)]:
            keys = [start + name.replace(".", "") for name in names]
            if set(keys) == set(spelt):
                return {name: spelt[key] for name, key in zip(names, keys, strict=True)}
    return {}
