"""The application: the REST interface, the page, and who may ask for them."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Response
from fastapi_swagger import patch_fastapi

from diffusion_jax.serving import api, problems, wire
from diffusion_jax.serving.desk import Desk
from diffusion_jax.serving.guard import Guard

PAGE = files("diffusion_jax.explorer") / "page"
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def create(
    desk: Desk,
    token: str | None = None,
    started: Callable[[], None] = lambda: None,
) -> Any:
    """The ASGI application of a desk.

    Args:
      desk: what is served.
      token: that /v1 wants, see `Guard`.
      started: called once the application is up.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        started()
        yield
        desk.worker.stop()

    app = FastAPI(
        title="diffusion-jax",
        version="1",
        summary="Backward processes of diffusion models, forked at a time of your choice",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    problems.install(app)
    patch_fastapi(app, redirect_from_root_to_docs=False)  # the same as by default, without a CDN

    @app.get("/health", responses={503: {"model": wire.Health}})
    async def health(response: Response) -> wire.Health:
        """Whether requests are answered."""
        response.status_code = 200 if desk.ready else 503
        status = "ready" if desk.ready else "starting"
        return wire.Health(status=status, done=desk.done, of=desk.of)  # type: ignore[arg-type]

    _page(app)
    app.include_router(api.router(desk))
    problems.describe(app, token is not None)

    def closed() -> str | None:
        if desk.ready:
            return None
        return f"the programs are being compiled: {desk.done} of {desk.of} are ready"

    return Guard(app, token, closed, _script_hashes())


def _page(app: FastAPI) -> None:
    def sent(name: str) -> Response:
        kind = _KINDS.get(name.rpartition(".")[2])
        if not re.fullmatch(r"[a-z]+\.[a-z]+", name) or kind is None:
            return problems.problem(404, "the page has no such file")
        file = PAGE / name
        if not file.is_file():
            return problems.problem(404, "the page has no such file")
        headers = {"Cache-Control": "no-cache"}
        return Response(file.read_bytes(), 200, headers, f"{kind}; charset=utf-8")

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return sent("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        return sent(name)


def _script_hashes() -> str:
    """The hashes of the page's inline scripts, for its content security policy."""
    text = (PAGE / "index.html").read_text()
    inline = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in inline)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
