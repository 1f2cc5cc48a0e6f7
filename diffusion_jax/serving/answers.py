"""From results to answers, in the types of `wire`."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image as Pictures

from diffusion_jax import study
from diffusion_jax.runtime.text import shown
from diffusion_jax.sampling import SAMPLERS
from diffusion_jax.serving import ids, judging, paths, wire
from diffusion_jax.serving.desk import default_calls
from diffusion_jax.serving.model import Model, count_parameters
from diffusion_jax.serving.programs import Reading, is_noisy
from diffusion_jax.serving.work import Job

TIMES = (
    *("Lambda", "t_S_spectrum", "t_S_phi", "t_S_rate"),
    *("t_C_entropy", "t_C_phi", "t_C_phi_60", "t_C_leave_one_out"),
)


def described(model: Model) -> wire.Described:
    """A model."""
    law, run = model.mixture, model.run
    names = list(model.denoisers)
    return wire.Described(
        id=model.id,
        name=shown(model.name),
        kind="run" if run is not None else "data",
        shape=list(model.shape),
        mean=[float(each) for each in model.images.mean],
        classes=[shown(name) for name in model.images.class_names] if model.has_classes else [],
        num_images=len(model.points),
        num_steps=model.schedule.num_steps,
        times=np.asarray(model.schedule.time, np.float64).tolist(),
        denoisers=[{"name": name, "about": model.about(name)} for name in names],
        samplers=[{"name": name, "noisy": is_noisy(kind)} for name, kind in SAMPLERS.items()],
        calls={
            "default": default_calls(model, names[0]),
            "least": 2,
            "most": model.schedule.num_steps,
        },
        regimes={name: model.result.get(name) for name in TIMES},
        trained_on=study.describe(model.images),
        network=None if run is None else {"parameters": count_parameters(run), "updates": run.step},
        mixture=None
        if law is None
        else {"dimension": law.dimension, "mu": law.mu, "sigma": law.sigma},
        most_clones=ids.MOST_CLONES,
    )


def posterior(model: Model, found: Reading) -> wire.Posterior:
    """What the exact posterior says of one x_t."""
    labels, has = model.images.labels, model.has_classes
    near = [
        wire.Near(index=int(i), weight=float(w), label=int(labels[i]) if has else None)  # type: ignore[index]
        for i, w in zip(found.nearest, found.weights, strict=True)
    ]
    return wire.Posterior(
        classes=[float(each) for each in found.classes] if has else None,
        entropy=max(0.0, float(found.class_entropy)) if has else None,
        effective=judging.effective(found),
        nearest=near,
    )


def trunk(model: Model, job: Job) -> wire.Trunk:
    """A trunk as far as it went."""
    found: paths.Trunk = job.result
    done, has, name = len(found.projection), model.has_classes, found.id
    told = found.readings[:done]
    return wire.Trunk(
        id=str(name),
        request={
            "model": name.model,
            "denoiser": name.denoiser,
            "sampler": name.sampler,
            "calls": name.calls,
            "seed": name.seed,
            "index": name.index,
            "branches": [{"step": step, "clone": clone} for step, clone in name.branches],
        },
        status=job.status,
        detail=job.detail,
        steps=found.steps,
        times=found.times,
        done=done,
        fate=_fate(found.fate),
        along=wire.Along(
            classes=[each.classes.tolist() for each in told] if has else None,
            entropy=[max(0.0, float(each.class_entropy)) for each in told] if has else None,
            effective=[judging.effective(each) for each in told],
            projection=found.projection[:done],
        ),
    )


def state(model: Model, found: paths.Trunk, place: int) -> wire.State:
    """A trunk's state by its place."""
    read = posterior(model, found.readings[place]) if place < len(found.readings) else None
    return wire.State(
        step=found.steps[place],
        time=found.times[place],
        x=wire.Array.of(found.states[place]),
        posterior=read,
    )


def _fate(fate: judging.Fate | None) -> wire.Fate | None:
    return None if fate is None else wire.Fate(**fate)


def ends(model: Model, job: Job) -> wire.Fork | wire.Turn | wire.Samples:
    """Clones, returns or samples as far as they are."""
    found: paths.Ends = job.result
    done = len(found.paths)
    fates, name = found.fates[:done], found.id
    labels = [fate["label"] for fate in fates if fate["label"] is not None]
    common: dict[str, Any] = {
        "id": str(name),
        "status": job.status,
        "detail": job.detail,
        "done": done,
        "fates": [wire.Fate(**fate) for fate in fates],
        "classes": _classes(model, labels),
        "phi": judging.pairs(labels) if model.has_classes else None,
        "phi_C": judging.pairs([fate["nearest"] for fate in fates]),
        "paths": wire.Paths(steps=found.steps, projection=found.paths[:done]),
    }
    if isinstance(name, ids.SampleId):
        return wire.Samples(**common, first=name.trunk.index, count=name.count)
    time = float(model.schedule.time[name.step])
    place: dict[str, Any] = {"step": name.step, "time": time}
    if isinstance(name, ids.ForkId):
        own: dict[str, Any] = {"trunk": str(name.trunk), "clones": name.clones, "first": name.first}
        return wire.Fork(**common, **place, **own)
    assert found.start is not None
    return wire.Turn(
        **common,
        **place,
        returns=name.returns,
        start=wire.Array.of(found.start + model.images.mean),
        start_fate=_fate(found.start_fate),
        turning=wire.Array.of(np.stack(found.turning)) if found.turning else None,
        ends=wire.Array.of(np.stack(found.ends[:done])) if done else None,
    )


def _classes(model: Model, labels: list[int]) -> list[wire.ClassShare] | None:
    if not model.has_classes or not labels:
        return None
    counts = np.bincount(labels, minlength=len(model.images.class_names))
    return [
        wire.ClassShare(label=label, count=int(count), **judging.share(int(count), len(labels)))
        for label, count in enumerate(counts)
    ]


def result(model: Model) -> dict[str, Any]:
    """What experiments.regimes says of the training images."""
    found: dict[str, Any] = _legible(model.result)
    return found


def _legible(value: Any) -> Any:
    """The same with all texts legible: names of classes, which may be any file's."""
    if isinstance(value, dict):
        return {shown(name): _legible(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_legible(each) for each in value]
    return shown(value) if isinstance(value, str) else value


def npy(array: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(model: Model, images: np.ndarray) -> bytes:
    """A PNG of images (N, height, width, channels), mean removed, side by side in rows."""
    shown_as = np.clip(images + model.images.mean, 0, 1)
    count, height, width, channels = shown_as.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    sheet = np.ones((rows * columns, height, width, channels), np.float32)
    sheet[:count] = shown_as
    whole = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    pixels = np.rint(255 * whole.reshape(rows * height, columns * width, channels)).astype(np.uint8)
    grey = channels not in (3, 4)
    file = io.BytesIO()
    Pictures.fromarray(pixels[..., 0] if grey else pixels[..., :3]).save(file, "PNG")
    return file.getvalue()
