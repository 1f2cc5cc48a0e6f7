"""The explorer's command: it starts, is killed and started again, and ends by Ctrl-C."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import numpy as np
import pytest
from servers import settled
from tiny_runs import digits

from experiments import serve

SENTENCES = [
    ([], "name what is to be served"),
    (["mixture", "--port", "70000"], "port = 70000"),
    (["mixture", "--queue", "0"], "queue = 0"),
    (["mixture", "--token", "short"], "16 ASCII characters"),
    (["mixture", "mixture"], "named twice"),
    (["mixture", "--denoisers", "trained"], "no denoiser 'trained'"),
    (["mixture", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    (["/no/such/place"], "neither a run's folder nor a data set"),
    (["mixture", "photographs", "--data-dir", "x"], "one WHAT alone"),
]


@pytest.mark.parametrize(("words", "sentence"), SENTENCES)
def test_what_cannot_be_served_is_one_sentence(words, sentence, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["serve", *words])
    with pytest.raises(SystemExit) as end:
        serve.main()
    assert end.value.code in (1, 2)
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_port_that_is_taken_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(serve.UserError, match=f"port {port}.*--port"):
            serve.listening("127.0.0.1", port)


def start(path, *words):
    """A server of a file, and its address once it is ready."""
    command = [sys.executable, "-m", "experiments.serve", str(path), *words]
    command += ["--denoisers", "exact", "--accuracy", "0.05"]
    server = subprocess.Popen(
        command, cwd=path.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    said = []
    for line in server.stdout:
        said.append(line)
        if found := re.search(r"Ready on .*: (http\S*)/(#token=(\S+))?", line):
            return server, found[1], found[3]
    raise AssertionError("".join(said))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_for_few_calls")
def test_a_server_that_was_killed_gives_the_same_bytes_and_ctrl_c_ends_it(tmp_path):
    path = tmp_path / "digits.npy"  # without labels, so without a classifier to train
    np.save(path, digits(0, 20)[0])
    server, address, token = start(path, "--port", "0")
    assert token is None
    with httpx.Client(base_url=address, timeout=60) as http:
        model = http.get("/v1/models").json()["models"][0]["id"]
        trunk = f"/v1/trunks/{model}.exact.ancestral.20.1.4"
        step = settled(http, trunk).json()["steps"][8]
        fork = trunk.replace("trunks", "forks") + f"~forks.{step}.5.0"
        places = (trunk, f"{trunk}/states?step={step}", fork, f"{fork}/ends?as=npy")
        before = [settled(http, place).content for place in places]
    server.send_signal(signal.SIGKILL)
    server.wait()
    # To other machines, too: with a token, which is made and printed.
    server, address, token = start(path, "--port", "0", "--host", "0.0.0.0")
    assert len(token) > 20
    address = re.sub(r"//[^:]+", "//127.0.0.1", address)
    try:
        assert httpx.get(f"{address}/v1/models").status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=address, timeout=60, headers=headers) as http:
            assert [settled(http, place).content for place in places[::-1]][::-1] == before
            with http.stream("GET", f"{trunk}/events") as events:
                next(events.iter_lines())
                server.send_signal(signal.SIGINT)
                assert server.wait(timeout=20) == 0
        assert "Stopped." in server.stdout.read()
    finally:
        server.kill()
