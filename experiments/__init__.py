"""Command lines: `python -m experiments` lists them."""

from diffusion_jax.runtime import moved

moved.install(
    {
        f"experiments.{name}": f"experiments.{room}.{name}"
        for room, names in {
            "paper": (
                "adaptive_schedule",
                "classes",
                "collapse_definitions",
                "gaussian_mixture",
                "sampler_comparison",
            ),
            "tools": ("benchmark", "gpu_report", "regimes_speed", "torture"),
        }.items()
        for name in names
    }
)
