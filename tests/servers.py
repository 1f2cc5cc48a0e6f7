"""Servers of the explorer in a thread of this process, on a port that is free."""

import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from tiny_runs import digits

from diffusion_jax.data.images import ImageSet
from diffusion_jax.regimes import transitions
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.serving import app, model, opening
from diffusion_jax.serving.desk import Desk
from diffusion_jax.serving.server import Server
from diffusion_jax.serving.work import Worker


def digit_set(count=40):
    """Ones and eights of 8 x 8 pixels, so many of each."""
    images, labels = digits(0, count)
    return ImageSet(images, (labels == 8).astype("int64"), ("1", "8"))


def quick_regimes(opened):
    """The regimes from a quarter of the draws: what they are is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transitions, "_FIRST_ROUND", 256)
        return opening.regimes(opened, 0.05)


def small_model(name="digits", names=("exact", "gaussian"), images=None, **others):
    """A model of digits, with the regimes that are kept nowhere."""
    images = digit_set() if images is None else images
    run = others.get("run")
    schedule = linear_schedule() if run is None else run.sampler.schedule
    opened = opening.Opened(name, images, run, opening.Path("/nonexistent"), list(names), [])
    result = quick_regimes(opened)
    return model.make(name, images, schedule, list(names), result, None, **others)


@contextmanager
def serving(*models, token=None, most=32, ready=True, port=0, **options):
    """A server of models; gives its address and its desk."""
    desk = Desk(Worker(most, **options))
    desk.models |= {each.id: each for each in models}
    desk.ready = ready
    listener = socket.create_server(("127.0.0.1", port))
    application = app.create(desk, token, lambda: desk.worker.start(lambda: None, print))
    server = Server(application, desk.worker)
    thread = threading.Thread(target=server.serve_on, args=(listener,), daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        while not server.started:
            time.sleep(0.01)
        yield address, desk
    finally:
        desk.worker.stop_soon()
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


def client(address, **options):
    """A client of a server."""
    return httpx.Client(base_url=address, timeout=60, **options)


def settled(http, place, seconds=60, pause=0.03):
    """What is at a place once the work behind it is done."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = http.get(place)
        if answer.status_code != 202 or answer.json().get("status") in ("cancelled", "failed"):
            return answer
        time.sleep(pause)
    raise AssertionError(f"{place} was not done within {seconds} s")


def posted(http, place, body, **options):
    """The answer to a request once its work is done."""
    answer = http.post(place, json=body)
    assert answer.status_code in (200, 202), answer.text
    return settled(http, answer.headers["Location"], **options)
