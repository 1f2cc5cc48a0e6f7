"""The server's process: it listens, and ends by a signal with nobody left waiting."""

import socket
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn

from diffusion_jax.serving.work import Worker


class Server(uvicorn.Server):
    """Serves an application until a signal comes, which ends the worker and all streams too."""

    def __init__(self, application: Any, worker: Worker) -> None:
        """Makes the server of an application, whose work this worker does."""
        super().__init__(
            uvicorn.Config(
                application,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=2,
                timeout_keep_alive=30,
            )
        )
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end."""
        self._worker.stop_soon()
        super().handle_exit(sig, frame)

    def serve_on(self, listener: socket.socket) -> None:
        """Serves on a socket that listens; Ctrl-C is how it is meant to end."""
        with suppress(KeyboardInterrupt):
            self.run(sockets=[listener])
