"""State dicts of the original UNet to Flax parameters and back, and their files.

The one place where both are known. A state dict has the names and shapes of `torch_ref.unet.UNet`;
Flax parameters have kernels (height, width, in, out) or (in, out).
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import traverse_util
from torch import Tensor

from diffusion_jax.errors import UserError
from diffusion_jax.nn.unet import UNet
from diffusion_jax.runtime.files import expanded
from torch_ref import files
from torch_ref.unet import TIME_STEPS, sinusoidal_table
from torch_ref.unwrapping import TIME_TABLE, StateDict, Weights, Which, choose, listed

Shape = tuple[int, ...]

# Frequencies are rounded to float32 after an exponential whose last bit differs between versions
# of torch and processors; that bit moves the angle of step 999 by 6e-5. Another convention (k + 1
# in place of k, sines and cosines interleaved) is off by far more.
TIME_TABLE_BOUND = 1e-4

# Flax's names to the original's, by substitutions made one after the other.
_RENAMED = (
    (r"^time_dense1", "time_embeddings.time_mlp.1"),
    (r"^time_dense2", "time_embeddings.time_mlp.3"),
    (r"^encoder(\d+)\.(kernel|bias)$", r"encoder_blocks.\1.downsample.\2"),
    (r"^decoder(\d+)\.(kernel|bias)$", r"decoder_blocks.\1.upsample.1.\2"),
    (r"^(encoder|bottleneck|decoder)(\d+)", r"\1_blocks.\2"),
    (r"attention\.norm", "attention.group_norm"),
    (r"attention\.in_proj\.kernel", "attention.mhsa.in_proj_weight"),
    (r"attention\.in_proj\.bias", "attention.mhsa.in_proj_bias"),
    (r"attention\.out_proj", "attention.mhsa.out_proj"),
    (r"\.(kernel|scale)$", ".weight"),
)

# Flax's axes in the original's order and the reverse, by the number of axes.
_TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_TO_FLAX = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def _torch_name(flax_name: str) -> str:
    for pattern, replacement in _RENAMED:
        flax_name = re.sub(pattern, replacement, flax_name)
    return flax_name


@lru_cache(maxsize=8)
def _flax_shapes(model: UNet) -> dict[str, Shape]:
    """Names, joined by dots, and shapes of the model's parameters.

    Raises:
      UserError: there is no such model.
    """
    side = 2 ** (len(model.multiples) - 1)
    image = jax.ShapeDtypeStruct((1, side, side, model.channels), jnp.float32)
    step = jax.ShapeDtypeStruct((1,), jnp.int32)
    init = model.copy(dtype=jnp.float32).init
    params = jax.eval_shape(init, jax.random.key(0), image, step)["params"]
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(params, sep=".").items()}


def _torch_shapes(model: UNet) -> dict[str, Shape]:
    """Names and shapes of the model's state dict."""
    shapes: dict[str, Shape] = {TIME_TABLE: (TIME_STEPS, model.base_channels)}
    for name, shape in _flax_shapes(model).items():
        shapes[_torch_name(name)] = tuple(shape[axis] for axis in _TO_TORCH[len(shape)])
    return shapes


def _infer(shapes: Mapping[str, Shape]) -> UNet:
    """The configuration for which most entries of a state dict speak.

    So a missing or misshapen entry does not hide the rest. What no entry tells has its default; the
    comparison with the state dict then says what is wrong.
    """

    def vote(*votes: tuple[str, int], default: int) -> int:
        """The commonest length among (pattern of names, axis)."""
        lengths = [
            shape[axis]
            for pattern, axis in votes
            for name, shape in shapes.items()
            if len(shape) > axis and shape[axis] > 0 and re.fullmatch(pattern, name)
        ]
        return Counter(lengths).most_common(1)[0][0] if lengths else default

    def indices(pattern: str) -> list[int]:
        matches = [match for name in shapes if (match := re.match(pattern, name))]
        found = {int(match[1]) for match in matches if len(match[1]) < 5}
        return sorted(
            index for index in found if index < len(shapes)
        )  # no more blocks than entries

    channels = vote(
        (r"init_conv\.weight", 1), (r"final_block\.conv\.(weight|bias)", 0), default=UNet.channels
    )
    base_channels = vote(
        (r"init_conv\.(weight|bias)", 0),
        (r"time_embeddings\.time_mlp\.[01]\.weight", 1),
        default=UNet.base_channels,
    )
    encoder, decoder = indices(r"encoder_blocks\.(\d+)\."), indices(r"decoder_blocks\.(\d+)\.")
    if not encoder or not decoder:
        return UNet(channels, base_channels)

    # A level ends with a down- or up-sampling, the last level alone with a residual block.
    downs = [*indices(r"encoder_blocks\.(\d+)\.downsample\."), encoder[-1] + 1]
    ups = [*indices(r"decoder_blocks\.(\d+)\.upsample\."), decoder[-1] + 1]
    gaps = [b - a - 1 for a, b in pairwise([-1, *downs])]
    gaps += [b - a - 2 for a, b in pairwise([-1, *ups])]
    num_res_blocks = max(Counter(gaps).most_common(1)[0][0], 1)
    num_levels = max(-(-downs[-1] // (num_res_blocks + 1)), -(-ups[-1] // (num_res_blocks + 2)))

    multiples, attention_levels = [], []
    for level in range(1, num_levels + 1):
        start = (level - 1) * (num_res_blocks + 1)
        down = "|".join(map(str, range(start, start + num_res_blocks)))
        start = (num_levels - level) * (num_res_blocks + 2)
        up = "|".join(map(str, range(start, start + num_res_blocks + 1)))
        block = rf"(encoder_blocks\.({down})|decoder_blocks\.({up}))\."
        outputs = block + r"(dense|block1\.conv|block2\.norm|block2\.conv)\.(weight|bias)"
        multiples.append(max(vote((outputs, 0), default=0) // base_channels, 1))
        if any(re.match(block + r"attention\.", name) for name in shapes):
            attention_levels.append(level)
    return UNet(channels, base_channels, tuple(multiples), tuple(attention_levels), num_res_blocks)


def _compare(
    what: str, model: UNet, found: Mapping[str, Shape], expected: dict[str, Shape]
) -> None:
    """Raises a UserError that names entries of `found` that are not as expected."""
    if not set(found) & set(expected):
        raise UserError(
            f"{what} are not those of the original UNet: none has a name of its entries "
            f"({listed(list(expected))}), they are {listed(list(found)) or 'none at all'}"
        )
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {found[name]} for {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    if any(faults.values()):
        named = [f"{fault}: {listed(names)}" for fault, names in faults.items() if names]
        raise UserError(
            f"{what} are not those of a UNet with channels = {model.channels}, base_channels = "
            f"{model.base_channels}, multiples = {model.multiples}, attention_levels = "
            f"{model.attention_levels}, num_res_blocks = {model.num_res_blocks}; "
            f"{'; '.join(named)}"
        )


def _type(value: Tensor) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    if value.is_meta:
        return f"{kind} without values"
    return kind if value.layout == torch.strided else f"{kind} {value.layout}"


def _check_types(what: str, types: Mapping[str, str]) -> None:
    """Raises a UserError unless all entries are float32, or all float64."""
    if set(types.values()) not in ({"float32"}, {"float64"}):
        common = Counter(types.values()).most_common(1)[0][0]
        allowed = common if common in ("float32", "float64") else "float32"
        wrong = [f"{name} {kind}" for name, kind in types.items() if kind != allowed]
        raise UserError(
            f"{what} must all be float32, or all float64: convert {listed(wrong)} to {allowed}"
        )


def from_torch(state_dict: Mapping[str, Tensor]) -> tuple[UNet, dict[str, Any]]:
    """The Flax model and parameters of a state dict of the original UNet, bit for bit.

    Width, levels and attention follow from the entries' names and shapes. Dropout is not in a state
    dict: the model has the default. The time table is not a parameter in Flax, which computes with
    its own: it is checked to be that one, up to 1e-4. `time_table` reads it, for the way back.

    Args:
      state_dict: float32 or float64 tensors; names may have prefixes, and of an average and raw
        weights the average is taken: see `unwrapping.choose`.

    Returns:
      The model, of the state dict's type, and its parameters as NumPy arrays, so that float64 is
      kept even where JAX's 64-bit types are not enabled; to compute in it, enable them. The noise
      is `model.apply({"params": params}, x, step)`, x (batch, height, width, channels).

    Raises:
      UserError: not a state dict of this architecture (the first missing, unexpected and misshapen
        entries are named, with the number of all), a time table that is not the sinusoid, or
        another type.
    """
    strange = [
        repr(name)
        for name, value in state_dict.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if strange:
        raise UserError(
            f"a state dict holds named tensors alone, but these are none: {listed(strange)}"
        )
    state_dict = choose(state_dict).state_dict
    found = {name: tuple(value.shape) for name, value in state_dict.items()}
    model = _infer(found)
    _compare("the state dict's entries", model, found, _torch_shapes(model))
    types = {name: _type(value) for name, value in state_dict.items()}
    _check_types("the state dict's entries", types)
    arrays = {name: value.detach().cpu().numpy() for name, value in state_dict.items()}

    _check_time_table(TIME_TABLE, model, arrays[TIME_TABLE])
    flat = {}
    for name, shape in _flax_shapes(model).items():
        array = arrays[_torch_name(name)]
        flat[name] = np.array(array.transpose(_TO_FLAX[len(shape)]), order="C")
    if types[TIME_TABLE] == "float64":
        model = model.copy(dtype=jnp.float64)
    return model, traverse_util.unflatten_dict(flat, sep=".")


def _check_time_table(name: str, model: UNet, table: np.ndarray) -> None:
    """Raises a UserError unless it is the model's up to `TIME_TABLE_BOUND`."""
    own = sinusoidal_table(model.base_channels, torch.float64).numpy()
    if table.shape != own.shape:
        raise UserError(f"{name} is of shape {table.shape}, not {own.shape}")
    error = np.abs(table - own).max()
    if not error <= TIME_TABLE_BOUND:
        raise UserError(
            f"{name} is not the table of sines and cosines of the steps that the UNet has, "
            f"but up to {error:.2g} off; this model has another time embedding"
        )


def time_table(state_dict: Mapping[str, Tensor]) -> np.ndarray:
    """The time table of a state dict that `from_torch` takes, (1000, base_channels)."""
    return choose(state_dict).state_dict[TIME_TABLE].detach().cpu().numpy()


def to_torch(
    model: UNet, params: Mapping[str, Any], time_table: np.ndarray | None = None
) -> StateDict:
    """The original's state dict of a Flax model, bit for bit; the inverse of `from_torch`.

    Args:
      model: the Flax model.
      params: its parameters, float32 or float64, on any devices.
      time_table: that of the state dict that they came from, see `time_table`. By default it is
        made anew: one made by another version of torch or on another processor may differ from it
        in its last digits, by less than 1e-4.

    Returns:
      Tensors on the CPU, of the parameters' type, the fixed time table among them.

    Raises:
      UserError: the parameters are not the model's (the first missing, unexpected and misshapen
        ones are named), or of another type; or the time table is another model's.
    """
    flat = traverse_util.flatten_dict(params, sep=".")
    found = {name: tuple(np.shape(leaf)) for name, leaf in flat.items()}
    _compare("the parameters", model, found, _flax_shapes(model))
    _check_types("the parameters", {name: str(leaf.dtype) for name, leaf in flat.items()})
    state_dict = {}
    for name, leaf in flat.items():
        array = np.asarray(leaf).transpose(_TO_TORCH[np.ndim(leaf)])
        state_dict[_torch_name(name)] = torch.from_numpy(np.array(array, order="C"))
    dtype = state_dict["init_conv.weight"].dtype
    if time_table is None:
        return {TIME_TABLE: sinusoidal_table(model.base_channels, dtype)} | state_dict
    _check_time_table("the time table", model, time_table)
    return {TIME_TABLE: torch.from_numpy(np.array(time_table)).to(dtype)} | state_dict


def read(path: Path | str, weights: Which = "average") -> Weights:
    """Reads the weights of a file, and says which they are; see `load`."""
    path = expanded(path)
    return choose(files.read(path), weights, str(path))


def load(path: Path | str, weights: Which = "average") -> StateDict:
    """Reads a state dict from a torch file or a safetensors, whatever its name, onto the CPU.

    Nothing but tensors is ever unpickled. Prefixes are removed, and of a file that also holds an
    average of the weights that is taken: see `unwrapping.choose`.

    Args:
      path: the file.
      weights: `raw` for those that are not averaged.

    Raises:
      UserError: the file cannot be read, is damaged, or is not one of weights; or it has none of
        those asked for, or several.
    """
    return read(path, weights).state_dict


def save(path: Path | str, state_dict: Mapping[str, Tensor]) -> None:
    """Writes a state dict, whole or not at all.

    It becomes a safetensors where the name ends so, and a torch file under any other name.

    Raises:
      UserError: it cannot be written.
    """
    files.write(expanded(path), state_dict)
