"""What a training on each data set is: complete configurations, by name.

Each trains with `python -m experiments.train_lsun --preset NAME`; further options change it.
"""

from dataclasses import replace
from pathlib import Path

from diffusion_jax.config import Config, DataConfig, ModelConfig, OutputConfig, TrainingConfig
from diffusion_jax.data import SOURCES


def data_defaults(data: str) -> DataConfig:
    """The images that --data DATA means without further options: of a path, all as they are."""
    if data not in SOURCES:
        return DataConfig(data, classes=(), images_per_class=None, image_size=None)
    return DataConfig(data, **SOURCES[data].defaults._asdict())


def _preset(name: str) -> Config:
    """The paper's training on a data set other than LSUN."""
    return Config(
        output=OutputConfig(run_dir=Path("runs") / name),
        data=data_defaults(name),
        training=TrainingConfig(batch_size=128),
    )


_LSUN = Config(data=data_defaults("lsun"))
PRESETS = {
    "lsun": _LSUN,
    "lsun_small": replace(
        _LSUN,
        output=OutputConfig(run_dir=Path("runs/lsun_small")),
        data=replace(_LSUN.data, images_per_class=100),
    ),
    **{name: _preset(name) for name in SOURCES if name not in ("lsun", "photographs")},
    # Of "Why diffusion models don't memorize" (Bonnaire et al. 2025, arXiv:2505.17638).
    "celeba32_gray": Config(
        output=OutputConfig(
            run_dir=Path("runs/celeba32_gray"),
            sampler="ddim",
            evaluate_at="log",
            evaluate_calls=100,
            sample_every=None,
        ),
        data=replace(data_defaults("celeba"), images_per_class=512, image_size=32, grey=True),
        model=ModelConfig(base_channels=32, multiples=(1, 2, 4), attention_levels=(2, 3)),
        training=TrainingConfig(batch_size=512),
    ),
    "sample": Config(
        output=OutputConfig(
            run_dir=Path("runs/sample"),
            log_every=10,
            checkpoint_every=250,
            sample_every=1_000_000,
            num_samples=16,
        ),
        data=data_defaults("photographs"),
        model=ModelConfig(
            base_channels=32, multiples=(1, 2, 2), attention_levels=(2,), num_res_blocks=1
        ),
        training=TrainingConfig(
            batch_size=16, learning_rate=1e-3, warmup_steps=50, ema_decay=0.995
        ),
        steps=1200,
    ),
}
"""Complete configurations by name, as `train_lsun --preset` knows them."""


def preset_of(data: str) -> Config | None:
    """The preset that is a data set's own, None for a path.

    That of LSUN is `lsun`, and of the photographs `sample`. A source that was added from outside
    the package has the paper's training too.
    """
    if data not in SOURCES:
        return None
    own = (preset for preset in PRESETS.values() if preset.data == data_defaults(data))
    return next(own, _preset(data))
