"""Brings published files: resumed after a break, and checked against their published digests.

Nothing here runs unless a user asks for it: no reader imports this module.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from rich import progress
from rich.console import Console

from diffusion_jax.data.source import Fetched, Unpack
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import require_room, unwritten
from diffusion_jax.runtime.lock import flock

# Seconds before another try; a try that brings more than ever before starts them anew.
_WAITS = (1, 5, 20)
_TIMEOUT = (20, 60)  # to connect, and of silence
_CHUNK = 2**18
_NETWORK = (requests.RequestException, urllib3.exceptions.HTTPError)


_PUBLISHED = Path(__file__).parent / "published"


class Published(NamedTuple):
    """A file as its publisher and TensorFlow Datasets know it."""

    url: str
    size: int
    sha256: str


def published(listed: str) -> dict[str, Published]:
    """The files of a data set by name: their addresses, sizes and SHA-256 digests.

    They are those that TensorFlow Datasets checks its own downloads against (its
    url_checksums/LISTED.txt), in published/LISTED.txt.
    """
    files = {}
    for line in (_PUBLISHED / f"{listed}.txt").read_text().splitlines():
        url, size, digest, name = line.split("\t")
        files[name] = Published(url, int(size), digest)
    return files


class _Break(Exception):
    """A connection that ended too soon, or a server that asks to come again."""


def fetch(
    fetched: Fetched,
    data_dir: Path,
    classes: tuple[str, ...],
    mirror: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Brings the files that classes of a data set need; those that are there are left alone.

    What has come of a file lies in NAME.partial until it is whole, and a later call goes on from
    there. The file has its name once it is whole and its digest is the published one.

    Args:
      fetched: which files these are.
      data_dir: the folder that they go into, which is made if need be.
      classes: what is wanted of the data set.
      mirror: an address in place of the publisher's, to which the files' names are added; what
        comes from there is checked against the same digests.
      say: is given a line for each file.

    Raises:
      UserError: no such class; no room; a server that does not answer, or has another file; a file
        in the way; a folder that cannot be written to.
    """
    if mirror is not None:
        _check_mirror(mirror)
    files = published(fetched.listed)
    wanted = {}
    for name in fetched.names(classes):
        file = files[name]
        if mirror is not None:
            file = file._replace(url=f"{mirror.rstrip('/')}/{name}")
        if (place := _held(fetched, data_dir, name, file)) is None:
            wanted[name] = file
        else:
            say(f"{place} is there already")
    if not wanted:
        return
    _check_room(data_dir, wanted, fetched.unpack is not None)
    for name, file in wanted.items():
        target = data_dir / name
        if fetched.unpack is None:
            _bring(target, file)
            say(f"{target}: {file.size} bytes from {file.url}, SHA-256 as published")
        elif target.exists():
            _check_digest(target, file)
            say(f"{target} is there already, and unpacked: {fetched.unpack(target, target)}")
        else:
            folder = _bring(target, file, fetched.unpack)
            say(f"{folder}: unpacked from {file.url}, SHA-256 as published")


def _check_mirror(mirror: str) -> None:
    try:
        parts = urlsplit(mirror)
        whole = bool(parts.hostname) and parts.port != 0  # a bad port is noticed as it is read
    except ValueError as error:
        raise UserError(
            f"--mirror {mirror} is no address ({error}): give one such as https://host/folder"
        ) from error
    if parts.scheme not in ("http", "https"):
        raise UserError(f"--mirror {mirror} must begin with https:// or http://")
    if not whole:
        raise UserError(
            f"--mirror {mirror} names no host: give an address such as https://host/folder"
        )


def _held(fetched: Fetched, data_dir: Path, name: str, file: Published) -> Path | None:
    """Where the folder holds a file, or what is in it."""
    target = data_dir / name
    if fetched.unpack is not None or not target.exists():
        return fetched.held(data_dir, name)
    _check_digest(target, file)
    return target


def _check_digest(path: Path, file: Published) -> None:
    """Refuses a file that is there and is not the published one."""
    try:
        digest = _sha256(path)
    except OSError as error:
        raise UserError(
            f"{path} is there, but cannot be read as a file ({error.strerror}); move it away or "
            f"name another folder with --data-dir"
        ) from error
    if digest != file.sha256:
        raise UserError(
            f"{path} is there, but is not the published file: its SHA-256 is {digest}, not "
            f"{file.sha256}; move it away or name another folder with --data-dir"
        )


def _check_room(data_dir: Path, wanted: dict[str, Published], unpacked: bool) -> None:
    """Makes the folder, and refuses what it has no room for.

    Unpacked an archive takes about its own size, and is removed before the next one comes.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(data_dir, error) from error
    missing = []
    for name, file in wanted.items():
        here = [path for path in (data_dir / name, _partial(data_dir / name)) if path.exists()]
        missing.append(max(0, file.size - here[0].stat().st_size) if here else file.size)
    if unpacked:
        room = max(missing) + sum(file.size for file in wanted.values())
        require_room(data_dir, room, f"{' and '.join(wanted)}, packed and unpacked,")
    else:
        require_room(data_dir, sum(missing), " and ".join(wanted))


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _bring(target: Path, file: Published, unpack: Unpack | None = None) -> Path:
    """Brings one file, and unpacks it if it is to be."""
    partial = _partial(target)
    if partial.is_symlink() or (partial.exists() and not partial.is_file()):
        raise UserError(
            f"{partial} is a link or a folder, and what comes would be written there: move it away"
        )
    try:
        with open(partial, "ab", opener=_follow_no_link) as content:
            _lock(content, target)
            resumed = content.tell() > 0
            _download(content, file, target)
            if (digest := _sha256(partial)) != file.sha256 and resumed:
                # What was there may be of another file.
                content.truncate(0)
                _download(content, file, target)
                digest = _sha256(partial)
            if digest != file.sha256:
                partial.unlink()
                raise UserError(
                    f"{file.url} is not the published file: its SHA-256 is {digest}, not "
                    f"{file.sha256}; what came was removed: try again later, or from elsewhere "
                    f"with --mirror"
                )
            if unpack is None:
                partial.replace(target)
                return target
            folder = unpack(partial, target)
            partial.unlink()
            return folder
    except OSError as error:
        raise unwritten(partial, error) from error


def _follow_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _lock(content: IO[bytes], target: Path) -> None:
    """Refuses a file that another process is bringing; it is given up as the file is closed."""
    try:
        flock(content.fileno(), wait=False)
    except BlockingIOError:
        raise UserError(f"{target} is being fetched by another process: wait for it") from None


def _download(content: IO[bytes], file: Published, target: Path) -> None:
    """Appends to a file what it lacks, with as many connections as that takes."""
    with _bar() as bar, requests.Session() as session:
        task = bar.add_task(f"Fetching {target.name}", total=file.size)
        most, tries = content.tell(), 0
        while (size := content.seek(0, os.SEEK_END)) != file.size:
            try:
                if size > file.size:
                    content.truncate(0)
                _receive(session, content, file, lambda done: bar.update(task, completed=done))
            except UserError:
                raise
            except (requests.TooManyRedirects, ValueError) as error:  # an address that is none
                raise UserError(
                    f"{file.url} cannot be fetched ({str(error)[:300]}); look whether the address "
                    f"is right, or name another with --mirror"
                ) from error
            except (_Break, *_NETWORK) as error:
                size = content.seek(0, os.SEEK_END)
                tries = 0 if size > most else tries + 1
                if tries > len(_WAITS):
                    raise UserError(
                        f"{file.url} broke off after {size} of {file.size} bytes "
                        f"({str(error)[:300]}); what came is kept, and the same command goes on "
                        f"from there"
                    ) from error
                most = max(most, size)
                time.sleep(_WAITS[max(0, tries - 1)])


def _receive(
    session: requests.Session,
    content: IO[bytes],
    file: Published,
    advance: Callable[[int], None],
) -> None:
    """Appends what one connection gives."""
    size = content.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    with session.get(file.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if urlsplit(file.url).scheme == "https" and urlsplit(response.url).scheme != "https":
            raise UserError(f"{file.url} leads to {response.url}, which is not encrypted")
        if response.status_code in (408, 416, 429) or response.status_code >= 500:
            if response.status_code == 416:
                content.truncate(0)
            raise _Break(f"the server answered {response.status_code} {response.reason}")
        _check(response, file)
        if response.status_code != 206:
            content.truncate(0)  # it knows no ranges
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            content.truncate(0)
            raise _Break("the server sent another range than it was asked for")
        done = content.seek(0, os.SEEK_END)
        # As it is sent: a server may call a .gz an encoding, and it would be unpacked; and as it
        # comes: what a connection gave before it broke is kept.
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            done += len(chunk)
            if done > file.size:
                content.truncate(0)
                raise _other(file, f"more than {file.size} bytes")
            content.write(chunk)
            advance(done)
    content.flush()
    if done < file.size:
        raise _Break("the connection was closed")


def _check(response: requests.Response, file: Published) -> None:
    """Refuses an answer that is not the file."""
    kind = response.headers.get("Content-Type", "")
    if response.status_code not in (200, 206):
        raise UserError(
            f"{file.url} cannot be fetched: the server answered {response.status_code} "
            f"{response.reason}; look whether the address is right, or name another with --mirror"
        )
    if kind.startswith("text/html"):
        raise _other(file, "a web page, such as those where one logs in to a network")
    told = response.headers.get("Content-Length")
    if response.status_code == 206:
        told = response.headers.get("Content-Range", "").rpartition("/")[2]
    if told and told.isdigit() and int(told) != file.size:
        raise _other(file, f"{told} bytes")


def _other(file: Published, what: str) -> UserError:
    return UserError(
        f"{file.url} is not the published file of {file.size} bytes: the server sends {what}; "
        f"try again later, or from elsewhere with --mirror"
    )


def _bar() -> progress.Progress:
    console = Console(stderr=True)
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _sha256(path: Path) -> str:
    """The digest of a file."""
    with _bar() as bar, bar.open(path, "rb", description=f"Checking {path.name}") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
