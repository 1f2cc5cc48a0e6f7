"""The REST interface: routes, and no computation."""

import hashlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.text import shown
from diffusion_jax.serving import answers, events, ids, paths, wire
from diffusion_jax.serving.desk import Desk, Unknown, training_image
from diffusion_jax.serving.model import Model
from diffusion_jax.serving.problems import RESPONSES, RETRY_AFTER, problem
from diffusion_jax.serving.work import Job

As = Annotated[
    Literal["json", "png", "npy"], Query(alias="as", description="The form of the answer.")
]
Name = Annotated[str, Path(max_length=500, description="An id that this server gave.")]
Known = Annotated[str | None, Header(alias="If-None-Match")]
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": {events.MEDIA_TYPE: {}}}
}
_PICTURES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}, "application/octet-stream": {}}}
}


def _kept(content: bytes, kind: str, known: str | None, headers: dict[str, str]) -> Response:
    """An answer that is the same whenever it is asked for, with its tag."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers |= {"ETag": tag, "Cache-Control": "private, no-cache"}
    same = known is not None and (known == "*" or tag in known)
    return Response(b"" if same else content, 304 if same else 200, headers, kind)


def _json(answer: BaseModel) -> bytes:
    return answer.model_dump_json(by_alias=True).encode()


def _answer(
    job: Job, place: str, made: Callable[[], BaseModel], known: str | None = None
) -> Response:
    """What is known of a job: 200 with a tag once it is done, 202 before, else a problem."""
    if job.status in ("failed", "cancelled"):
        return _ended(job)
    if job.status == "done":
        return _kept(_json(made()), "application/json", known, {"Location": place})
    headers = {"Location": place, "Retry-After": "1", "Cache-Control": "no-store"}
    return Response(_json(made()), 202, headers, "application/json")


def _array(
    model: Model, images: np.ndarray, form: str, headers: dict[str, str], known: str | None
) -> Response:
    """Images (N, ...) or one of them (...), mean removed, in a form."""
    if form == "json":
        return _kept(
            _json(wire.Images(x=wire.Array.of(images))), "application/json", known, headers
        )
    if form == "npy":
        return _kept(answers.npy(images), "application/octet-stream", known, headers)
    many = images if images.ndim == 4 else images[None]
    return _kept(answers.png(model, many), "image/png", known, headers)


def _ended(job: Job) -> Response:
    """The answer about work that came to no end: a new POST begins it anew."""
    if job.status == "failed":
        return problem(500 if job.is_fault else 422, job.detail or "it failed")
    return problem(410, "it was cancelled: post it again, and it begins anew")


def _not_yet(place: str) -> Response:
    headers = {"Location": place, "Retry-After": RETRY_AFTER, "Cache-Control": "no-store"}
    return Response(b"{}", 202, headers, "application/json")


def router(desk: Desk) -> APIRouter:
    """All of /v1."""
    api = APIRouter(prefix="/v1", responses=RESPONSES)
    _about_models(api, desk)
    _about_trunks(api, desk)
    _about_forks(api, desk)
    _about_turns_and_samples(api, desk)
    _about_events(api, desk)
    return api


def _about_models(api: APIRouter, desk: Desk) -> None:
    @api.get("/models")
    async def models() -> wire.Models:
        """All models that are served."""
        return wire.Models(
            models=[
                wire.Listed(id=each.id, name=shown(each.name), kind="run" if each.run else "data")
                for each in desk.models.values()
            ]
        )

    @api.get("/models/{id}")
    def model(id: Name, known: Known = None) -> wire.Described:
        """A model: its schedule, its classes, what it was trained on, its t_S and t_C."""
        found = answers.described(desk.model(id))
        return _kept(_json(found), "application/json", known, {})  # type: ignore[return-value]

    @api.get("/models/{id}/images/{index}", responses=_PICTURES)
    def image(
        id: Name,
        index: Annotated[int, Path(ge=0)],
        form: As = "json",
        known: Known = None,
    ) -> wire.TrainingImage:
        """A training image, in [0, 1]."""
        found = desk.model(id)
        values = training_image(found, index)
        if form == "json":
            labels = found.images.labels if found.has_classes else None
            own = wire.TrainingImage(
                index=index,
                label=None if labels is None else int(labels[index]),
                image=wire.Array.of(values + found.images.mean),
            )
            return _kept(_json(own), "application/json", known, {})  # type: ignore[return-value]
        shown_as = values + found.images.mean if form == "npy" else values
        return _array(found, shown_as, form, {}, known)  # type: ignore[return-value]

    @api.get("/regimes/{id}")
    def regimes(id: Name) -> dict[str, Any]:
        """The regimes of the training images, as result.json of experiments.regimes has them."""
        return answers.result(desk.model(id))

    @api.post("/denoise")
    async def denoise(request: wire.DenoiseRequest) -> wire.Denoised:
        """What denoisers predict of the clean data behind one x_t."""
        job, model = desk.denoise(request), desk.model(request.model)
        await events.finished(job, desk.worker)
        if not job.ended:  # the server ends; whoever asks one that is back is answered
            return problem(  # type: ignore[return-value]
                503, "the server is ending: ask again", {"Retry-After": RETRY_AFTER}
            )
        if job.status != "done":
            raise UserError(job.detail or "the computation was cancelled")
        return wire.Denoised(
            step=request.step,
            time=float(model.schedule.time[request.step]),
            denoised={name: wire.Array.of(x) for name, x in job.result["denoised"].items()},
            posterior=answers.posterior(model, job.result["reading"]),
        )


def _about_trunks(api: APIRouter, desk: Desk) -> None:
    def answer(trunk: ids.TrunkId, known: str | None, anew: bool = False) -> Response:
        job, model = desk.trunk(trunk, anew), desk.model(trunk.model)
        return _answer(job, f"/v1/trunks/{trunk}", lambda: answers.trunk(model, job), known)

    @api.post("/trunks", status_code=202, responses={200: {"model": wire.Trunk}})
    def post(request: wire.TrunkRequest) -> wire.Trunk:
        """Begins a trunk, a backward trajectory from pure noise; its events tell of its states."""
        return answer(desk.trunk_id(request), None, anew=True)  # type: ignore[return-value]

    @api.get("/trunks/{id}", responses={202: {"model": wire.Trunk}})
    def get(id: Name, known: Known = None) -> wire.Trunk:
        """A trunk as far as it went; one that is not known is begun."""
        return answer(_trunk(id), known)  # type: ignore[return-value]

    @api.get("/trunks/{id}/states", responses=_PICTURES | {202: {"description": "Not yet."}})
    def states(id: Name, step: wire.Step, form: As = "json", known: Known = None) -> wire.State:
        """The trunk's state nearest to a step; the header Step names the one that it is."""
        trunk = _trunk(id)
        model = desk.model(trunk.model)
        desk.step_of(model, step, least=-1)
        job = desk.trunk(trunk)
        found: paths.Trunk = job.result
        place = found.place(step)
        if place >= len(found.projection):
            if job.ended:
                return _ended(job)  # type: ignore[return-value]
            return _not_yet(f"/v1/trunks/{trunk}")  # type: ignore[return-value]
        headers = {"Step": str(found.steps[place])}
        if form == "json":
            state = answers.state(model, found, place)
            return _kept(_json(state), "application/json", known, headers)  # type: ignore[return-value]
        return _array(model, found.states[place], form, headers, known)  # type: ignore[return-value]


def _trunk(name: str) -> ids.TrunkId:
    found = _parsed(ids.TrunkId, name)
    assert isinstance(found, ids.TrunkId)
    return found


def _parsed(kind: type[ids.Id], name: str) -> ids.Id:
    try:
        return ids.parse(kind, name)
    except UserError as error:
        raise Unknown(str(error)) from error


def _about_forks(api: APIRouter, desk: Desk) -> None:
    def answer(fork: ids.ForkId, known: str | None, anew: bool = False) -> Response:
        job, model = desk.fork(fork, anew), desk.model(fork.trunk.model)
        return _answer(job, f"/v1/forks/{fork}", lambda: answers.ends(model, job), known)

    @api.post("/trunks/{id}/forks", status_code=202, responses={200: {"model": wire.Fork}})
    def post(id: Name, request: wire.ForkRequest) -> wire.Fork:
        """Lets clones go from a trunk's state; each ends with noise of its own."""
        return answer(desk.fork_id(_trunk(id), request), None, anew=True)  # type: ignore[return-value]

    @api.get("/forks/{id}", responses={202: {"model": wire.Fork}})
    def get(id: Name, known: Known = None) -> wire.Fork:
        """What became of the clones so far; a fork that is not known is begun."""
        fork = _parsed(ids.ForkId, id)
        assert isinstance(fork, ids.ForkId)
        return answer(fork, known)  # type: ignore[return-value]

    @api.get("/forks/{id}/ends", responses=_PICTURES | {202: {"description": "Not yet."}})
    def ends(
        id: Name,
        form: As = "json",
        clone: Annotated[int | None, Query(ge=0, le=ids.MOST_CLONES)] = None,
        known: Known = None,
    ) -> wire.Images:
        """Where the clones ended, all or one."""
        fork = _parsed(ids.ForkId, id)
        assert isinstance(fork, ids.ForkId)
        job, place = desk.fork(fork), f"/v1/forks/{fork}"
        return _ends(desk, job, fork, place, form, clone, known)  # type: ignore[return-value]


def _ends(
    desk: Desk,
    job: Job,
    name: ids.ForkId | ids.SampleId,
    place: str,
    form: str,
    number: int | None,
    known: str | None,
) -> Response:
    """All ends of a job, or one of them."""
    count = name.clones if isinstance(name, ids.ForkId) else name.count
    if number is not None and number >= count:
        raise UserError(f"there is no image {number}: they are 0 to {count - 1}")
    if job.status != "done":
        return _ended(job) if job.ended else _not_yet(place)
    found: list[np.ndarray] = job.result.ends
    images = np.stack(found) if number is None else found[number]
    return _array(desk.model(name.trunk.model), images, form, {}, known)


def _about_turns_and_samples(api: APIRouter, desk: Desk) -> None:
    def turned(
        turn: ids.TurnId, image: np.ndarray | None, known: str | None, anew: bool = False
    ) -> Response:
        job, model = desk.turn(turn, anew, image), desk.model(turn.trunk.model)
        return _answer(job, f"/v1/uturns/{turn}", lambda: answers.ends(model, job), known)

    def drawn(samples: ids.SampleId, known: str | None, anew: bool = False) -> Response:
        job, model = desk.samples(samples, anew), desk.model(samples.trunk.model)
        return _answer(job, f"/v1/samples/{samples}", lambda: answers.ends(model, job), known)

    @api.post("/uturns", status_code=202, responses={200: {"model": wire.Turn}})
    def post_turn(request: wire.TurnRequest) -> wire.Turn:
        """Takes an image up to a time with noise, and back."""
        return turned(*desk.turn_id(request), None, anew=True)  # type: ignore[return-value]

    @api.get("/uturns/{id}", responses={202: {"model": wire.Turn}})
    def get_turn(id: Name, known: Known = None) -> wire.Turn:
        """What came back so far."""
        turn = _parsed(ids.TurnId, id)
        assert isinstance(turn, ids.TurnId)
        return turned(turn, None, known)  # type: ignore[return-value]

    @api.post("/samples", status_code=202, responses={200: {"model": wire.Samples}})
    def post_samples(request: wire.SampleRequest) -> wire.Samples:
        """Draws samples."""
        samples = ids.SampleId(desk.trunk_id(request), request.count)
        return drawn(samples, None, anew=True)  # type: ignore[return-value]

    @api.get("/samples/{id}", responses={202: {"model": wire.Samples}})
    def get_samples(id: Name, known: Known = None) -> wire.Samples:
        """What became of the samples so far."""
        samples = _parsed(ids.SampleId, id)
        assert isinstance(samples, ids.SampleId)
        return drawn(samples, known)  # type: ignore[return-value]

    @api.get("/samples/{id}/images", responses=_PICTURES | {202: {"description": "Not yet."}})
    def images(
        id: Name,
        form: As = "json",
        number: Annotated[int | None, Query(ge=0, le=ids.MOST_CLONES)] = None,
        known: Known = None,
    ) -> wire.Images:
        """The samples, all or one."""
        samples = _parsed(ids.SampleId, id)
        assert isinstance(samples, ids.SampleId)
        job, place = desk.samples(samples), f"/v1/samples/{samples}"
        return _ends(desk, job, samples, place, form, number, known)  # type: ignore[return-value]


def _about_events(api: APIRouter, desk: Desk) -> None:
    last = Annotated[int, Header(alias="Last-Event-ID", ge=-1, le=2**31)]
    begin: dict[str, Callable[[Any], Job]] = {
        "trunks": desk.trunk,
        "forks": desk.fork,
        "uturns": desk.turn,
        "samples": desk.samples,
    }
    kinds = dict(zip(begin, ids.NOUNS, strict=True))

    def add(noun: str) -> None:
        @api.get(
            f"/{noun}/{{id}}/events",
            responses=_EVENTS,
            response_class=StreamingResponse,
            name=f"{noun} events",
        )
        async def happening(request: Request, id: Name, after: last = -1) -> StreamingResponse:
            """What happens, as server-sent events: progress, states or fates, and the end."""
            job = begin[noun](_parsed(kinds[noun], id))
            headers = {"Cache-Control": "no-store"}
            told = events.stream(job, desk.worker, after)
            return StreamingResponse(told, 200, headers, events.MEDIA_TYPE)

        @api.delete(f"/{noun}/{{id}}", status_code=204, name=f"cancel {noun}")
        async def cancel(id: Name) -> Response:
            """Ends the work before its next step, unless others listen to it."""
            job = desk.worker.find(str(_parsed(kinds[noun], id)))
            if job is None:
                return problem(404, "there is nothing of this id that could be cancelled")
            if len(job.waiters) > 1:
                return problem(409, "others listen to this work, so that it goes on")
            desk.worker.cancel(job)
            return Response(status_code=204)

    for noun in begin:
        add(noun)
