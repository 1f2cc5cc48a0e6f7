"""What a training on each data set is: complete configurations, by name.

Each trains with `python -m experiments.train_lsun --preset NAME`; further options change it.
"""

from pathlib import Path

from diffusion_jax.config import Config, DataConfig, ModelConfig, OutputConfig, TrainingConfig
from diffusion_jax.data import IMAGENET


def _preset(data: DataConfig) -> Config:
    """The paper's training on a data set other than LSUN."""
    return Config(
        output=OutputConfig(run_dir=Path("runs") / data.data),
        data=data,
        training=TrainingConfig(batch_size=128),
    )


PRESETS = {
    "lsun": Config(),
    "lsun_small": Config(
        output=OutputConfig(run_dir=Path("runs/lsun_small")),
        data=DataConfig(images_per_class=100),
    ),
    "mnist": _preset(DataConfig("mnist", ("1", "8"), images_per_class=500, image_size=32)),
    "mnist_full": _preset(
        DataConfig("mnist_full", ("1", "8"), images_per_class=5000, image_size=32)
    ),
    "cifar10": _preset(
        DataConfig("cifar10", ("automobile", "horse"), images_per_class=1500, image_size=32)
    ),
    **{
        name: _preset(
            DataConfig(name, ("lesser_panda", "seashore"), images_per_class=1000, image_size=size)
        )
        for name, size in IMAGENET.items()
    },
    "celeba": _preset(DataConfig("celeba", ("female", "male"), images_per_class=10_000)),
    "sample": Config(
        output=OutputConfig(
            run_dir=Path("runs/sample"),
            log_every=10,
            checkpoint_every=250,
            sample_every=1_000_000,
            num_samples=16,
        ),
        data=DataConfig(
            data="photographs", classes=("everyday", "medical"), images_per_class=500, image_size=16
        ),
        model=ModelConfig(
            base_channels=32, multiples=(1, 2, 2), attention_levels=(2,), num_res_blocks=1
        ),
        training=TrainingConfig(
            batch_size=16, learning_rate=1e-3, warmup_steps=50, ema_decay=0.995
        ),
        steps=1200,
    ),
}

# What --data stands for where the preset was made for another data set.
DATA_DEFAULTS = {
    preset.data.data: preset.data for name, preset in PRESETS.items() if name != "lsun_small"
}


def data_defaults(data: str) -> DataConfig:
    """The images that --data DATA means without further options: of a path, all as they are."""
    own = DataConfig(data, classes=(), images_per_class=None, image_size=None)
    return DATA_DEFAULTS.get(data, own)
