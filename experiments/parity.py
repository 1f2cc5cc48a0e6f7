"""Compares the JAX model with the PyTorch reference: python -m experiments.parity [--out DIR].

Both run on the CPU. Prints a table of relative errors and writes it to DIR/parity.json, with a
figure of the losses of two trainings on the same digits. Exits with status 1 where a bound is
broken. It takes several minutes on two CPU cores, most of them for float64 convolutions, which XLA
does not make fast: hence the paper's model is compared on images of 64 x 64 in float32, of 32 x 32
in float64.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from diffusion_jax.data import mnist
from diffusion_jax.errors import UserError
from diffusion_jax.plots.style import save
from diffusion_jax.plots.training import draw_parity_curves
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from experiments.command import exit_if_broken, parse, reports_errors

# Name, place in the Flax model and in the reference, side and channels of the input, at the paper's
# configuration on images of 64 x 64.
BLOCKS = (
    ("block", "final_block", "final_block", 64, 64),
    ("residual block", "encoder0", "encoder_blocks.0", 64, 64),
    ("residual block with attention", "encoder3", "encoder_blocks.3", 32, 64),
    ("residual block on a skip", "decoder0", "decoder_blocks.0", 8, 512),
    ("attention", "bottleneck0.attention", "bottleneck_blocks.0.attention", 8, 256),
    ("down-sampling", "encoder2", "encoder_blocks.2", 64, 64),
    ("up-sampling", "decoder3", "decoder_blocks.3", 8, 256),
)
SMALL: dict[str, Any] = {
    "channels": 1,
    "base_channels": 16,
    "multiples": (1, 2, 2),
    "attention_levels": (2,),
    "num_res_blocks": 1,
    "dropout": 0.0,
}
IMAGE_SIZE = {"float32": 64, "float64": 32}
BATCH, UPDATES, CHAIN = 4, 200, 50


@dataclass(frozen=True)
class Options:
    """Compares the JAX model with the PyTorch reference."""

    out: Path = Path("runs/parity")
    """Folder for parity.json and training.png."""


def measure(dtype: str) -> tuple[dict[str, dict[str, float]], tuple[np.ndarray, np.ndarray]]:
    """All errors in one float type, by what was compared, and the losses of both trainings."""
    import torch

    from torch_ref import compare

    with compare.precision(dtype):
        model = compare.perturbed()
        _, params = compare.bridge.from_torch(model.state_dict())
        errors: dict[str, dict[str, float]] = {}
        for name, flax_name, torch_name, side, channels in BLOCKS:
            side = side * IMAGE_SIZE[dtype] // 64
            shape = (1, side, side, channels)
            errors[name] = compare.compare_block(model, params, flax_name, torch_name, shape)
        size = IMAGE_SIZE[dtype]
        errors["whole model"] = compare.compare_model(model, compare.batch(0, 3, size, size, num=1))

        digits = mnist.load(("1", "8"), 500, 32)
        rng = np.random.default_rng(0)

        def batch() -> tuple[Any, Any, Any]:
            chosen = digits.images[rng.integers(0, len(digits.images), BATCH)]
            noise = rng.standard_normal(chosen.shape).astype(dtype)
            return (chosen / 255 - digits.mean).astype(dtype), rng.integers(0, 1000, BATCH), noise

        torch.manual_seed(0)
        small = compare.UNet(**SMALL)
        losses = compare.compare_training(small, [batch() for _ in range(UPDATES)])
        worst = float(np.abs(losses[0] / losses[1] - 1).max())
        errors[f"{UPDATES} updates on digits"] = {"training": worst}
        noise = rng.standard_normal((CHAIN + 1, 2, 32, 32, 1)).astype(dtype)
        error = compare.compare_chain(small.eval(), noise[0], noise[1:])
        errors[f"{CHAIN}-step ancestral chain"] = {"chain": error}
    return errors, losses


@reports_errors
def main() -> None:
    """Measures, prints, writes, and exits with status 1 where a bound is broken."""
    options = parse(Options, "parity", __doc__)
    backend.configure()
    jax.config.update("jax_platforms", "cpu")  # a GPU's default precision is another
    try:
        from torch_ref.compare import BOUNDS
    except ModuleNotFoundError as missing:
        raise UserError(
            f"the comparison needs {missing.name}; install the extra: EXTRAS=torch ./launch.sh ..."
        ) from missing
    options.out.mkdir(parents=True, exist_ok=True)

    results, losses = {}, {}
    for dtype in BOUNDS:
        print(f"Comparing in {dtype}", flush=True)
        results[dtype], losses[dtype] = measure(dtype)

    table = Table("what", "of", *(f"{dtype} (bound)" for dtype in BOUNDS))
    broken = []
    for what, kinds in results["float32"].items():
        for kind in kinds:
            cells = []
            for dtype, bounds in BOUNDS.items():
                error, bound = results[dtype][what][kind], bounds[kind]
                holds = error <= bound  # a NaN does not hold
                cells.append(f"{error:.1e} ({bound:.0e})" + ("" if holds else " BROKEN"))
                if not holds:
                    broken.append(f"{what}, {kind}, {dtype}: {error:.2g} is over {bound:.0e}")
            label = "loss" if kind == "training" else "last state" if kind == "chain" else kind
            table.add_row(what, label, *cells)
    Console().print(table)
    report = {
        "errors": results,
        "bounds": BOUNDS,
        "losses": {
            dtype: {"jax": ours.tolist(), "torch": theirs.tolist()}
            for dtype, (ours, theirs) in losses.items()
        },
    }
    write_json(options.out / "parity.json", report)
    training_bounds = {dtype: bounds["training"] for dtype, bounds in BOUNDS.items()}
    save(draw_parity_curves(losses, training_bounds), options.out / "training.png")
    print(f"Wrote {options.out / 'parity.json'} and {options.out / 'training.png'}")
    exit_if_broken(broken)


if __name__ == "__main__":
    main()
