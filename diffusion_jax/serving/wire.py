"""What the REST interface takes and gives, as types: the OpenAPI document is made of them."""

import base64
import binascii
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffusion_jax.errors import UserError
from diffusion_jax.serving import ids

Seed = Annotated[int, Field(ge=0, le=2**32 - 1, description="Seed of the noise.", examples=[0])]
Number = Annotated[int, Field(ge=0, le=2**31 - 1 - 1024)]
Step = Annotated[
    int,
    Field(
        ge=-1,
        le=2**31 - 1,
        description="A step s of the model's schedule, 0 to L - 1; -1 is clean data.",
        examples=[231],
    ),
]


class Strict(BaseModel):
    """A request: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Array(BaseModel):
    """An array of numbers."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"shape": [1, 2, 1], "data": "AACAPwAAAAA="}]},
    )
    shape: list[Annotated[int, Field(ge=1, le=2**20)]] = Field(min_length=1, max_length=4)
    data: str = Field(description="Base64 of little-endian float32 numbers, in C order.")

    @classmethod
    def of(cls, array: np.ndarray) -> "Array":
        """An array as it is sent."""
        plain = np.ascontiguousarray(array, "<f4")
        return cls(shape=list(plain.shape), data=base64.b64encode(plain.tobytes()).decode())

    def numpy(self, shape: tuple[int, ...]) -> np.ndarray:
        """The array, float32.

        Raises:
          UserError: it has another shape, or its data are no such numbers.
        """
        if tuple(self.shape) != shape:
            raise UserError(f"an array of shape {self.shape} was sent where {list(shape)} is asked")
        try:
            content = base64.b64decode(self.data, validate=True)
            found = np.frombuffer(content, "<f4").reshape(shape).astype(np.float32)
        except (binascii.Error, ValueError) as error:
            raise UserError(
                f"the data of an array are not the base64 of {int(np.prod(shape))} float32 numbers"
            ) from error
        if not np.isfinite(found).all():
            raise UserError("an array holds values that are not finite")
        if np.abs(found).max() > 1e6:
            raise UserError("an array holds values beyond 1e6, which are no noisy image's")
        return found


class Branch(Strict):
    """Where a trunk goes on as a clone of its own state."""

    step: Annotated[int, Field(ge=0, le=2**31 - 1, examples=[231])]
    clone: Annotated[int, Field(ge=0, le=ids.MOST_CLONE, examples=[4])]


class Process(Strict):
    """A backward process."""

    model: str = Field(description="Id of a model.", max_length=100, examples=["mnist-1f3c9a2b"])
    denoiser: str = Field(default="exact", description="See GET /v1/models/{id}.", max_length=40)
    sampler: str = Field(default="ancestral", description="See GET /v1/models/{id}.", max_length=40)
    calls: int | None = Field(
        default=None,
        ge=2,
        le=2**20,
        description="Denoiser calls; by default the model's.",
        examples=[100],
    )
    seed: Seed = 0
    index: Number = Field(default=0, description="Which sample of this seed.", examples=[7])


class TrunkRequest(Process):
    """A backward trajectory from pure noise to data."""

    branches: list[Branch] = Field(
        default=[], max_length=ids.MOST_BRANCHES, description="In descending order of their steps."
    )


class ForkRequest(Strict):
    """Clones of a trunk's state, each with noise of its own from there on."""

    step: Step
    clones: int = Field(default=32, ge=1, le=ids.MOST_CLONES, examples=[32])
    first: int = Field(default=0, ge=0, le=ids.MOST_CLONE, description="Number of the first clone.")


class Image(Strict):
    """A training image by its number, a PNG, or an array of values in [0, 1]: one of them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"index": 5}]})
    index: Number | None = Field(default=None, description="Number of a training image.")
    png: str | None = Field(default=None, description="Base64 of a PNG of the model's size.")
    array: Array | None = Field(default=None, description="Values in [0, 1].")


class TurnRequest(Process):
    """An image taken up to a time with noise, and back."""

    step: Annotated[
        int, Field(ge=0, le=2**31 - 1, description="Step at which it turns.", examples=[231])
    ]
    returns: int = Field(default=8, ge=1, le=ids.MOST_CLONES, examples=[8])
    image: Image


class SampleRequest(Process):
    """Samples `index` to `index + count - 1`."""

    count: int = Field(default=8, ge=1, le=ids.MOST_CLONES, examples=[8])


class DenoiseRequest(Strict):
    """What the denoisers predict of the clean data behind one x_t."""

    model: str = Field(max_length=100, examples=["mnist-1f3c9a2b"])
    x: Array = Field(description="x_t, the mean removed: sqrt(alpha_bar) x_0 + sigma z.")
    step: Annotated[int, Field(ge=0, le=2**31 - 1, examples=[231])]
    denoisers: list[Annotated[str, Field(max_length=40)]] | None = Field(
        default=None,
        max_length=10,
        description="Denoisers by name; by default all that the model has.",
        examples=[["exact", "gaussian"]],
    )


class Near(BaseModel):
    """A training image near x_t."""

    index: int = Field(examples=[17])
    weight: float = Field(description="p(nu | x_t)", examples=[0.83])
    label: int | None = Field(serialization_alias="class", examples=[1])


class Posterior(BaseModel):
    """What the exact posterior over the training images says of x_t."""

    classes: list[float] | None = Field(description="p(c | x_t)", examples=[[0.93, 0.07]])
    entropy: float | None = Field(description="H(c | x_t) in nats", examples=[0.25])
    effective: float = Field(description="exp H(p(. | x_t))", examples=[12.5])
    nearest: list[Near] = Field(description="The images of the largest weights, decreasing.")


class State(BaseModel):
    """A trunk's state."""

    step: int
    time: float
    x: Array
    posterior: Posterior | None


class Denoised(BaseModel):
    """See DenoiseRequest."""

    step: int
    time: float
    denoised: dict[str, Array] = Field(description="E[x_0 | x_t], the mean removed, by denoiser.")
    posterior: Posterior


class Fate(BaseModel):
    """What became of an image."""

    label: int | None = Field(serialization_alias="class", examples=[1])
    probability: float | None = Field(description="Probability of that class.", examples=[0.99])
    nearest: int = Field(description="Number of the nearest training image.", examples=[17])
    ratio: float = Field(description="Distance to it over that to the second nearest.")
    memorised: bool = Field(description="Whether the ratio is below 1/3.")


class Share(BaseModel):
    """A fraction and Wilson's 95 % interval."""

    value: float
    low: float
    high: float


class ClassShare(Share):
    """Which fraction ended in a class."""

    label: int = Field(serialization_alias="class")
    count: int


class Pairs(Share):
    """Which fraction of the disjoint pairs (0, 1), (2, 3), ... ended alike."""

    same: int
    pairs: int


Status = Literal["queued", "running", "done", "cancelled", "failed"]


class Along(BaseModel):
    """What is read off a trunk's states, by step; of the last a projection alone."""

    classes: list[list[float]] | None
    entropy: list[float] | None
    effective: list[float]
    projection: list[list[float]]


class Trunk(BaseModel):
    """A backward trajectory."""

    id: str = Field(examples=["mnist-1f3c9a2b.exact.ancestral.200.7.0"])
    request: dict[str, Any]
    status: Status
    detail: str | None = None
    steps: list[int] = Field(description="Steps visited, descending; the last is -1.")
    times: list[float]
    done: int = Field(description="Number of states so far.")
    fate: Fate | None
    along: Along


class Paths(BaseModel):
    """Components along the data's first two modes, by clone and step."""

    steps: list[int]
    projection: list[list[list[float]]]


class Ends(BaseModel):
    """Where clones, returns or samples ended, as far as they are there."""

    id: str
    status: Status
    detail: str | None = None
    done: int = Field(description="Number of ends so far.")
    fates: list[Fate]
    classes: list[ClassShare] | None
    phi: Pairs | None = Field(description="Pairs that ended in the same class.")
    phi_C: Pairs | None = Field(description="Pairs that ended nearest to the same image.")
    paths: Paths


class Fork(Ends):
    """Clones of a trunk's state."""

    trunk: str
    step: int
    time: float
    clones: int
    first: int


class Turn(Ends):
    """An image taken up and back."""

    step: int
    time: float
    returns: int
    start: Array
    start_fate: Fate | None
    turning: Array | None = Field(description="x_t of each return, (returns, h, w, c).")
    ends: Array | None


class Samples(Ends):
    """Samples."""

    first: int
    count: int


class Images(BaseModel):
    """Images, the mean removed."""

    x: Array


class TrainingImage(BaseModel):
    """A training image."""

    index: int
    label: int | None = Field(serialization_alias="class")
    image: Array = Field(description="Values in [0, 1].")


class Listed(BaseModel):
    """A model of the list."""

    id: str
    name: str
    kind: Literal["run", "data"]


class Models(BaseModel):
    """All models."""

    models: list[Listed]


class Described(Listed):
    """A model."""

    shape: list[int]
    mean: list[float]
    classes: list[str]
    num_images: int
    num_steps: int = Field(description="L")
    times: list[float] = Field(description="Ornstein-Uhlenbeck times of the steps 0 to L - 1.")
    denoisers: list[dict[str, str]]
    samplers: list[dict[str, Any]]
    calls: dict[str, int]
    regimes: dict[str, Any] = Field(description="Lambda and the times t_S, t_C with intervals.")
    trained_on: str
    network: dict[str, int] | None
    mixture: dict[str, float] | None
    most_clones: int


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "there is no model 'cats'; GET /v1/models lists those that there are",
                }
            ]
        }
    )
    type: str = "about:blank"
    title: str
    status: int
    detail: str


class Health(BaseModel):
    """Whether requests are answered."""

    status: Literal["starting", "ready"]
    done: int
    of: int
