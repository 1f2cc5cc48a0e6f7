"""Errors as RFC 9457 has them: a problem document whose detail is one sentence."""

import http
import json
import logging
import traceback
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.text import shown
from diffusion_jax.serving import wire
from diffusion_jax.serving.desk import Unknown
from diffusion_jax.serving.work import Busy

MEDIA_TYPE = "application/problem+json"
# Seconds after which one who was told to wait may ask again.
RETRY_AFTER = "2"
_log = logging.getLogger(__name__)


def body(status: int, detail: str) -> bytes:
    """A problem document."""
    title = http.HTTPStatus(status).phrase
    document = {"type": "about:blank", "title": title, "status": status, "detail": shown(detail)}
    return json.dumps(document).encode()


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that is a problem document."""
    return Response(body(status, detail), status, headers, MEDIA_TYPE)


def _sentence(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request, and where."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first['ctx']['error']}"
    if first["loc"] == ("body",) and isinstance(first["input"], bytes | str):
        return "the body is taken as JSON where its Content-Type is application/json: say so"
    place = ".".join(str(each) for each in first["loc"] if each not in ("body", "query", "path"))
    message = str(first["msg"])
    return f"{place[:100]}: {message}" if place else message


def install(app: FastAPI) -> None:
    """Makes every error of an application a problem document."""

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> Response:
        return problem(404 if isinstance(error, Unknown) else 422, str(error))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        detail = "the server has as much work as it takes at a time: ask again later"
        return problem(429, detail, {"Retry-After": RETRY_AFTER})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem(422, _sentence(error))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        details = {
            404: "there is nothing at this address; /docs lists what there is",
            405: "this address does not know this method; /docs lists what there is",
        }
        detail = details.get(error.status_code, str(error.detail))
        return problem(error.status_code, detail, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        _log.error("".join(traceback.format_exception(error)))
        return problem(500, "this is a fault of the server; its log says how it came about")


def describe(app: FastAPI, with_token: bool) -> None:
    """Adds the problem document, and the token, to the application's OpenAPI document."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        document["components"]["schemas"]["Problem"] = wire.Problem.model_json_schema()
        if with_token:
            token = {"type": "http", "scheme": "bearer"}
            document["components"]["securitySchemes"] = {"token": token}
            document["security"] = [{"token": []}]
        return document

    app.openapi = described  # type: ignore[method-assign]


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": what,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, what in {
        401: "A token is needed.",
        404: "There is no such thing.",
        409: "Others listen to the work.",
        410: "It was cancelled.",
        413: "The body is too large.",
        422: "Something about the request is wrong.",
        429: "There is as much work as may wait.",
        503: "The programs are not ready yet, or the server is ending.",
    }.items()
}
