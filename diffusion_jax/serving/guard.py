"""Who may ask, and how much: the token, the host's name, other sites' pages, and large bodies."""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from diffusion_jax.serving.problems import MEDIA_TYPE, RETRY_AFTER, body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MOST_BODY = 8 * 2**20
_POLICY = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self' {styles}; "
    "img-src 'self' data: blob:; connect-src 'self'; worker-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_TOO_LARGE = f"the body is longer than the {MOST_BODY} bytes that are taken"
_INTERFACE = "/v1"
# Swagger's page, which holds nothing but the interface's description.
_DOCS = "/docs"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine under a name that no other site can take."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI application around another, which lets through what may pass.

    Without a token only requests to a loopback name pass, so that a page of another site whose name
    was made to point here reads nothing. With one, all of /v1 wants it, as Authorization: Bearer.
    A request that a page of another origin makes is refused, and so is a body over 8 MiB.
    """

    def __init__(
        self,
        app: Any,
        token: str | None,
        closed: Callable[[], str | None] = lambda: None,
        scripts: str = "",
    ) -> None:
        """Guards an application.

        Args:
          app: the ASGI application.
          token: that /v1 wants; none where the server listens on the loopback alone.
          closed: why /v1 does not answer yet; None once it does.
          scripts: hashes of inline scripts that the page may run.
        """
        self._app, self._closed = app, closed
        self._token = None if token is None else f"Bearer {token}".encode()
        self._policy = _POLICY.format(scripts=scripts, styles="").encode()
        free = {"scripts": "'unsafe-inline'", "styles": "'unsafe-inline'"}
        self._docs_policy = _POLICY.format(**free).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if (refusal := self._refusal(scope["path"], headers)) is not None:
            await _refuse(send, *refusal)
            return
        if scope["method"] == "HEAD" and not scope["path"].endswith("/events"):
            scope = {**scope, "method": "GET"}  # the server leaves the body out
        policy = self._docs_policy if scope["path"] == _DOCS else self._policy
        await self._app(scope, _limited(receive), _with_headers(send, policy))

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = _name(host)
        if self._token is None and not is_loopback(name):
            return 421, "this server answers to the names of this machine's loopback alone"
        if _is_foreign(headers, host) and path.startswith(_INTERFACE):
            return 403, "pages of other sites may not use this server"
        if self._token is not None and path.startswith(_INTERFACE):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._token):
                return (
                    401,
                    "this needs the token that the server was started with, as a bearer token",
                )
        try:
            length = int(headers.get(b"content-length", b"0"))
        except ValueError:
            return 400, "the length of the body is no number"
        if length > MOST_BODY:
            return 413, _TOO_LARGE
        if path.startswith(_INTERFACE) and (reason := self._closed()) is not None:
            return 503, reason
        return None


def _with_headers(send: Send, policy: bytes) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                (b"content-security-policy", policy),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
                (b"cross-origin-resource-policy", b"same-origin"),
            ]
        await send(message)

    return sending


def _is_foreign(headers: dict[bytes, bytes], host: str) -> bool:
    """Whether a page of another origin asks: browsers say so, of images and the like too."""
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return True
    origin = headers.get(b"origin")
    return origin is not None and origin.decode("latin-1").partition("://")[2] != host


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _limited(receive: Receive) -> Receive:
    """The receiver, which raises where a body sent in pieces is too long."""
    total = 0

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MOST_BODY:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return receiving


async def _refuse(send: Send, status: int, detail: str) -> None:
    content = body(status, detail)
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(content))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append((b"retry-after", RETRY_AFTER.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
