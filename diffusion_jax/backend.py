"""Settings of XLA that must be made before its first use."""

import os

import jaxlib


def configure() -> None:
    """Chooses the faster convolutions on the CPU; call it before the first JAX computation.

    jaxlib 0.10 sends convolutions to YNN, which is slower than Eigen on the UNet; matrix products
    stay with it. Other versions may not know the option, and XLA aborts on an unknown one. A
    user's own choice in XLA_FLAGS stands.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__.startswith("0.10.") and "ynn" not in flags:
        option = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
        os.environ["XLA_FLAGS"] = f"{flags} {option}".strip()
