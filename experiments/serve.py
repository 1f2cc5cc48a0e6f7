"""The explorer, a page and a REST interface: python -m experiments.serve WHAT... [--port 8000].

Each WHAT is a run's folder; a data set of the list below; the path of a folder of images, a table
of them, Parquet, an .npy or an .npz; or mixture, two Gaussians in 64 dimensions. Without a run the
exact score and other closed forms answer, without any training. The page shows a backward process
along time, forks it where you say, and lets the clones fall onto phi(t); docs/serve.md tells of it
and of the REST interface by which it gets all that it shows.
"""

import dataclasses
import secrets
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import jax
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from diffusion_jax import data, study
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.denoisers import DENOISERS
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.transitions import check_accuracy
from diffusion_jax.runtime.text import shown
from experiments import run_or_data
from experiments.command import parse, reports_errors, start
from experiments.data_options import DataOptions

if TYPE_CHECKING:
    from diffusion_jax.serving.opening import Opened


# Where regimes and classifiers of data sets are kept, below the current folder.
_ROOM = Path("runs/serve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Serves the explorer of runs and data sets."""

    what: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Runs' folders, data sets' names, paths of images, or mixture."""
    data: str | None = None
    """Of one run: where the images that it was trained on are now, if they moved."""
    port: int = 8000
    """Port to listen on; 0 takes one that is free."""
    host: str = "127.0.0.1"
    """Address to listen on. Other machines reach the server only where this is not the loopback's,
    and then every request needs the token."""
    token: str | None = None
    """Token that requests must hold, at least 16 characters; where --host needs one and none is
    given, one is made and printed."""
    denoisers: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(metavar=f"trained|{'|'.join(DENOISERS)}")
    ] = None
    """Which denoisers answer; by default the network and all closed forms that are quick enough to
    look at. The exact score always does."""
    out: Path | None = None
    """Folder that keeps the regimes and the classifier of a single WHAT; by default RUN_DIR/serve,
    of a data set runs/serve/NAME-DIGEST."""
    accuracy: float = 5e-3
    """Target standard error of phi and phi_C."""
    queue: int = 32
    """Pieces of work that may be unfinished at a time; further requests are told to come again."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        if not self.what:
            raise UserError("name what is to be served: a run's folder, a data set, or mixture")
        if not 0 <= self.port < 2**16:
            raise UserError(f"port = {self.port} must lie between 0 and 65535")
        if self.queue < 1:
            raise UserError(f"queue = {self.queue} must be at least 1")
        if self.token is not None and (len(self.token) < 16 or not self.token.isascii()):
            raise UserError("token must be of 16 ASCII characters at least")
        if len(self.what) > 1 and (self.out or self.data or self.data_dir):
            raise UserError("--out, --data and --data-dir are for one WHAT alone")
        check_accuracy(self.accuracy, 50_000)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      UserError: the address is not this machine's, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; give another --port "
            f"or --host"
        ) from error


def _open(what: str, options: Options) -> "Opened":
    """Reads a WHAT, and checks that it can be served.

    Raises:
      UserError: see `run_or_data.opened`, `study.warnings_of` and `model.chosen_denoisers`.
    """
    from diffusion_jax.serving import model, opening

    law, run = None, None
    if what == opening.MIXTURE:
        law, images = opening.mixture(), opening.mixture_images()
        name, folder = what, options.out or _ROOM / what
    else:
        run, images = run_or_data.opened(what, options)
        place = run_or_data.expanded(what)
        name = data.name_of(what) if run is None else place.resolve().name
        own = place / "serve" if run else _ROOM / f"{model.slug(name)}-{fingerprint(images)[:8]}"
        folder = options.out or own
    warnings = study.warnings_of(images, options.memory_gib)
    trained, asked = run is not None, options.denoisers
    names = model.chosen_denoisers(images, trained, law is not None, asked)
    return opening.Opened(name, images, run, folder, names, warnings, law)


def _address(host: str, port: int) -> str:
    """Where a browser finds the server."""
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@reports_errors
def main() -> None:
    """Reads what is to be served, and serves it."""
    options = parse(Options, "serve", f"{__doc__}\n{data.listing()}")
    options.check()
    try:
        from diffusion_jax.serving import app, guard, opening
        from diffusion_jax.serving.desk import Desk
        from diffusion_jax.serving.server import Server
        from diffusion_jax.serving.work import Worker
    except ModuleNotFoundError as error:
        raise UserError(
            f"serving needs {error.name}, of the extra serve: pip install 'diffusion-jax[serve]', "
            f"or EXTRAS=serve ./launch.sh ... in a checkout"
        ) from error
    start()
    if jax.process_count() > 1:
        raise UserError("one process serves: start it by itself, on a machine with all its devices")
    opened = [_open(what, options) for what in options.what]
    if len(folders := {each.folder for each in opened}) < len(opened):
        raise UserError(f"something is named twice: {', '.join(map(str, sorted(folders)))}")
    loopback = guard.is_loopback(options.host)
    token = options.token or (None if loopback else secrets.token_urlsafe(24))
    listener = listening(options.host, options.port)
    desk, console = Desk(Worker(options.queue)), Console(emoji=False)
    address = _address(options.host, listener.getsockname()[1])
    failure: list[Exception] = []

    def failed(error: Exception) -> None:
        failure.append(error)
        server.should_exit = True

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(
        TextColumn("Starting"),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=opening.steps_of(opened))

        def said(what: str) -> None:
            bar.update(task, completed=desk.done, description=escape(shown(what)))
            if not what:
                bar.stop()
                own = "" if token is None else f"#token={quote(token, safe='')}"
                ready = f"Ready on {opening.device()}: {address}/{own}\nCtrl-C ends it."
                console.print(Text(ready), soft_wrap=True)

        prepare = opening.prepare(desk, opened, options.accuracy, said)
        application = app.create(desk, token, lambda: desk.worker.start(prepare, failed))
        server = Server(application, desk.worker)
        server.serve_on(listener)
    if failure:
        raise failure[0]
    console.print("Stopped.")


if __name__ == "__main__":
    sys.exit(main())
