"""Files of weights whose bytes are anything: weights, or a sentence.

DIFFUSION_JAX_FUZZ is the number of inputs for each reader.
"""

import io
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed")
import safetensors.torch  # noqa: E402

from diffusion_jax.errors import UserError  # noqa: E402
from torch_ref import bridge  # noqa: E402
from torch_ref.unet import UNet  # noqa: E402

EXAMPLES = int(os.environ.get("DIFFUSION_JAX_FUZZ", "50"))


def whole():
    """A file of each format, with dictionaries and two sets of weights where there can be."""
    model = UNet(base_channels=8, multiples=(1,), attention_levels=(), num_res_blocks=1)
    weights = {name: value[:40] for name, value in model.state_dict().items()}
    both = {"step": 3, "model": weights, "ema": {"shadow_params": list(weights.values())}}
    files = [safetensors.torch.save({f"ema_model.{n}": v.clone() for n, v in weights.items()})]
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(both, buffer, _use_new_zipfile_serialization=zipped)
        files.append(buffer.getvalue())
    return files


WHOLE = whole()


@st.composite
def mutated(draw):
    """A file with bytes changed, cut off, put in, or with a random beginning."""
    content = bytearray(draw(st.sampled_from(WHOLE)))
    # Names and pickles are at either end, the numbers in between.
    far = draw(st.sampled_from([64, 4096, len(content)]))
    near = st.integers(0, min(far, len(content)) - 1)
    places = near | near.map(lambda place: len(content) - 1 - place)
    for place in draw(st.lists(places, max_size=6)):
        content[place] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        place, more = draw(places), draw(st.binary(max_size=16))
        content[place : place + draw(st.integers(0, 16))] = more
    if draw(st.booleans()):
        del content[draw(places) :]
    if draw(st.integers(0, 9)) == 0:
        content[:0] = draw(st.binary(max_size=64))
    return bytes(content)


@settings(
    max_examples=EXAMPLES,
    deadline=20_000,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(mutated())
def test_any_bytes_are_weights_or_refused_in_a_short_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "weights"
    path.write_bytes(content)
    for weights in ("average", "raw"):
        found, said = {}, ""
        try:
            found = bridge.load(path, weights)
        except UserError as error:
            said = str(error)
        assert len(said) < 1500
        assert bool(found) != bool(said)
        assert all(isinstance(value, torch.Tensor) for value in found.values())
