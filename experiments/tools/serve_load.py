"""The explorer's server under load: python -m experiments.tools.serve_load [WHAT] [--seconds 30].

Starts experiments.serve, and lets many clients ask at once for trunks, states, forks and denoisers;
then floods it past its queue, kills it with SIGKILL, starts it again, and compares the bytes of the
same ids. Prints what it saw, as JSON: answers by status, the wait for a state, and the process's
memory after a first round and at the end.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any

import psutil
import tyro

from diffusion_jax.errors import UserError
from experiments.command import parse, reports_errors

_WAIT = 0.05


@dataclass(frozen=True)
class Options:
    """Puts the explorer's server under load."""

    what: Annotated[str, tyro.conf.Positional] = "mnist"
    """What is served."""
    seconds: float = 30.0
    """Seconds for which the clients ask."""
    clients: int = 16
    """Clients at once."""
    port: int = 8799
    """Port that the server listens on."""
    calls: int = 50
    """Denoiser calls per trunk."""


@dataclass
class Seen:
    """What clients saw: answers by status, waits in seconds, and whoever was lost."""

    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    states: list[float] = field(default_factory=list)
    trunks: list[float] = field(default_factory=list)
    forks: list[float] = field(default_factory=list)


def _start(options: Options) -> subprocess.Popen[bytes]:
    """The server, ready."""
    import httpx

    command = [sys.executable, "-m", "experiments.serve", options.what, "--port", str(options.port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while server.poll() is None:
        try:
            if httpx.get(f"{_address(options)}/health", timeout=5).status_code == 200:
                return server
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise UserError(f"the server of {options.what} ended with status {server.returncode}")


def _address(options: Options) -> str:
    return f"http://127.0.0.1:{options.port}"


async def _settled(http: Any, seen: Seen, place: str) -> Any:
    """What is at a place once its work is done, of whose end its events tell."""
    async with http.stream("GET", f"{place}/events") as events:
        async for _ in events.aiter_lines():
            pass
    answer = await http.get(place)
    seen.statuses[answer.status_code] += 1
    return answer


async def _posted(http: Any, seen: Seen, place: str, body: dict[str, Any]) -> str:
    """The address of what was asked for, once it was taken."""
    while True:
        answer = await http.post(place, json=body)
        seen.statuses[answer.status_code] += 1
        if answer.status_code != 429:
            answer.raise_for_status()
            return str(answer.headers["Location"])
        await asyncio.sleep(_WAIT)


async def _client(options: Options, model: str, number: int, end: float, seen: Seen) -> None:
    """One client: trunks of its own, a state, all denoisers of it, and a fork, over and over."""
    import httpx

    async with httpx.AsyncClient(base_url=_address(options), timeout=60) as http:
        turn = 0
        try:
            while time.monotonic() < end:
                body = {"model": model, "calls": options.calls, "seed": number, "index": turn}
                began = time.monotonic()
                place = await _posted(http, seen, "/v1/trunks", body)
                trunk = (await _settled(http, seen, place)).json()
                seen.trunks.append(time.monotonic() - began)
                step, began = trunk["steps"][options.calls // 2], time.monotonic()
                answer = await http.get(f"{place}/states?step={step}")
                seen.statuses[answer.status_code] += 1
                state = answer.json()
                ask = {"model": model, "x": state["x"], "step": state["step"]}
                answer = await http.post("/v1/denoise", json=ask)
                seen.statuses[answer.status_code] += 1
                seen.states.append(time.monotonic() - began)
                began = time.monotonic()
                fork = await _posted(http, seen, f"{place}/forks", {"step": step, "clones": 8})
                await _settled(http, seen, fork)
                seen.forks.append(time.monotonic() - began)
                turn += 1
        except (httpx.HTTPError, KeyError, ValueError) as error:
            seen.lost.append(repr(error))


async def _crowd(options: Options, model: str, seconds: float, seen: Seen, first: int) -> None:
    end = time.monotonic() + seconds
    numbers = range(first, first + options.clients)
    await asyncio.gather(*(_client(options, model, number, end, seen) for number in numbers))


def _alone(options: Options, model: str) -> dict[str, float]:
    """One client: seconds per state of a trunk of 200 calls, and for 32 clones from t_S."""
    import httpx

    with httpx.Client(base_url=_address(options), timeout=60) as http:

        def done(place: str, body: dict[str, Any]) -> tuple[float, Any]:
            began = time.monotonic()
            answer = http.post(place, json=body)
            location = answer.headers["Location"]
            with http.stream("GET", f"{location}/events") as events:
                for _ in events.iter_lines():
                    pass
            return time.monotonic() - began, http.get(location).json()

        told = http.get(f"/v1/models/{model}").json()
        t_s = told["regimes"]["t_S_phi"]["value"]
        step = min(range(told["num_steps"]), key=lambda s: abs(told["times"][s] - t_s))
        states, forks = [], []
        for index in range(5):
            body = {"model": model, "calls": 200, "seed": 123, "index": index}
            seconds, trunk = done("/v1/trunks", body)
            states.append(seconds / 200)
            place = f"/v1/trunks/{trunk['id']}/forks"
            forks.append(done(place, {"step": step, "clones": 32})[0])
    return {
        "state_of_200_s": statistics.median(states),
        "fork_of_32_from_t_S_s": statistics.median(forks),
    }


async def _flood(options: Options, model: str) -> Counter[int]:
    """Statuses of two hundred trunks of a thousand calls, asked for at once; then all are ended."""
    import httpx

    async with httpx.AsyncClient(base_url=_address(options), timeout=60) as http:
        bodies = [{"model": model, "calls": 1000, "seed": 10**6 + i} for i in range(200)]
        answers = await asyncio.gather(*(http.post("/v1/trunks", json=body) for body in bodies))
        taken = [answer for answer in answers if answer.status_code == 202]
        await asyncio.gather(*(http.delete(answer.headers["Location"]) for answer in taken))
    return Counter(answer.status_code for answer in answers)


def _bytes(options: Options, model: str) -> list[bytes]:
    """The answers about a trunk, its states and a fork."""

    async def ask() -> list[bytes]:
        import httpx

        async with httpx.AsyncClient(base_url=_address(options), timeout=60) as http:
            trunk = f"/v1/trunks/{model}.exact.ancestral.{options.calls}.7.3"
            steps = (await _settled(http, Seen(), trunk)).json()["steps"]
            fork = trunk.replace("trunks", "forks") + f"~forks.{steps[options.calls // 2]}.32.0"
            places = [trunk, f"{trunk}/states?step={steps[9]}", fork, f"{fork}/ends?as=npy"]
            for place in (trunk, fork):
                await _settled(http, Seen(), place)
            return [(await http.get(place)).content for place in places]

    return asyncio.run(ask())


def _summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    late = ordered[int(0.95 * (len(ordered) - 1))]
    return {"count": len(ordered), "median_s": statistics.median(ordered), "p95_s": late}


def _measure(options: Options, server: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What a running server does, and its memory."""
    import httpx

    listed = httpx.get(f"{_address(options)}/v1/models").json()["models"]
    model, process = listed[0]["id"], psutil.Process(server.pid)
    alone = _alone(options, model)
    asyncio.run(_crowd(options, model, min(10.0, options.seconds), Seen(), 0))
    before, seen = process.memory_info().rss, Seen()
    asyncio.run(_crowd(options, model, options.seconds, seen, options.clients))
    after = process.memory_info().rss
    flood = asyncio.run(_flood(options, model))
    return {
        "alone": alone,
        "clients": options.clients,
        "seconds": options.seconds,
        "statuses": {str(status): count for status, count in sorted(seen.statuses.items())},
        "lost": seen.lost,
        "trunk": _summary(seen.trunks),
        "state_and_denoisers": _summary(seen.states),
        "fork_of_8": _summary(seen.forks),
        "memory_mib": [round(before / 2**20), round(after / 2**20)],
        "flood_of_200": {str(status): count for status, count in sorted(flood.items())},
        "model": model,
    }


@reports_errors
def main() -> None:
    """Starts, asks, floods, kills, starts again and compares."""
    options = parse(Options, "tools.serve_load", __doc__)
    server = _start(options)
    try:
        found = _measure(options, server)
        model = found.pop("model")
        before = _bytes(options, model)
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        server = _start(options)
        found["same_bytes_after_sigkill"] = _bytes(options, model) == before
        server.send_signal(signal.SIGINT)
        found["status_after_ctrl_c"] = server.wait(timeout=30)
    finally:
        server.kill()
    print(json.dumps(found, indent=1))
    if found["lost"] or not found["same_bytes_after_sigkill"] or "500" in found["statuses"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
