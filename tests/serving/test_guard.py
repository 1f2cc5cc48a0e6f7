"""Who may ask, how much at a time, and what a wrong request gets: a sentence, never a traceback."""

import base64
import io
import json
import socket
import threading
import time

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from servers import client, posted, serving, settled

from diffusion_jax.errors import UserError
from diffusion_jax.serving import ids, programs

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


def problem(answer, status):
    """The sentence of a problem document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    found = answer.json()
    assert found["status"] == status
    assert set(found) == {"type", "title", "status", "detail"}
    assert "Traceback" not in found["detail"]
    for place in ("/work", "/home", "/tmp", "/usr", ".py"):  # of the server's disk
        assert place not in found["detail"]
    return found["detail"]


def picture(size, mode="L", kind="PNG"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


JSON = {"Content-Type": "application/json"}
NAMES = ("x", "a b", "../../etc/passwd", "a\u202eb", "%2e%2e", "digits-00000000", "é" * 300)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["models/{}", "regimes/{}", "trunks/{}", "forks/{}", "uturns/{}"])
def test_an_unknown_name_is_not_found(http, name, place):
    from urllib.parse import quote

    answer = http.get("/v1/" + place.format(quote(name, safe="")))
    assert answer.status_code in (404, 422)
    problem(answer, answer.status_code)


def wrong_bodies(model):
    trunk = {"model": model.id, "calls": 20}
    turn = trunk | {"step": 400, "image": {"index": 0}}
    x = {"shape": [8, 8, 1], "data": base64.b64encode(bytes(256)).decode()}
    nan = {"shape": [8, 8, 1], "data": base64.b64encode(b"\xff" * 256).decode()}
    ask = {"model": model.id, "step": 3}
    branch = [{"step": 300, "clone": 0}, {"step": 400, "clone": 0}]
    return [
        ("trunks", trunk | {"denoiser": "tea"}, "no denoiser 'tea'"),
        ("trunks", trunk | {"sampler": "tea"}, "no sampler 'tea'"),
        ("trunks", trunk | {"calls": 1}, "calls"),
        ("trunks", trunk | {"calls": 1001}, "between 2 and 1000"),
        ("trunks", trunk | {"seed": -1}, "seed"),
        ("trunks", trunk | {"index": 2**31}, "index"),
        ("trunks", trunk | {"tea": 1}, "tea"),
        ("trunks", trunk | {"branches": branch}, "descend"),
        ("trunks", trunk | {"branches": [{"step": 1000, "clone": 0}]}, "outside the schedule"),
        ("trunks", trunk | {"branches": branch[:1], "sampler": "ddim"}, "adds no noise"),
        ("uturns", turn | {"image": {}}, "give one of them"),
        ("uturns", turn | {"image": {"index": 80}}, "they are 0 to 79"),
        ("uturns", turn | {"image": {"index": 1, "png": "x"}}, "give one of them"),
        ("uturns", turn | {"image": {"png": "x!"}}, "cannot be read"),
        ("uturns", turn | {"image": {"png": picture((8, 8))[:-40]}}, "cannot be read"),
        ("uturns", turn | {"image": {"png": picture((9, 8))}}, "9 x 8 pixels"),
        ("uturns", turn | {"image": {"png": picture((8, 8), "I;16")}}, "16 bits"),
        ("uturns", turn | {"image": {"png": picture((8, 8), kind="JPEG")}}, "cannot be read"),
        ("uturns", turn | {"image": {"array": x | {"shape": [4, 16, 1]}}}, "shape [4, 16, 1]"),
        ("uturns", turn | {"image": {"array": nan}}, "not finite"),
        ("uturns", turn | {"step": 1000}, "outside the schedule"),
        ("uturns", turn | {"returns": 129}, "returns"),
        ("denoise", ask | {"x": x, "denoisers": ["tea"]}, "no denoiser 'tea'"),
        ("denoise", ask | {"x": x, "step": 1000}, "outside the schedule"),
        ("denoise", ask | {"x": x | {"data": "AA=="}}, "base64 of 64 float32"),
        ("denoise", ask | {"x": x | {"data": "*"}}, "base64 of 64 float32"),
        ("denoise", ask | {"x": nan}, "not finite"),
        ("samples", trunk | {"count": 0}, "count"),
        ("samples", trunk | {"count": 129}, "count"),
    ]


@pytest.mark.parametrize("case", range(29))
def test_a_wrong_request_gets_one_sentence(http, model, case):
    place, body, words = wrong_bodies(model)[case]
    sentence = problem(http.post(f"/v1/{place}", json=body), 422)
    assert words in sentence
    assert "\n" not in sentence


def test_all_wrong_requests_are_tried(model):
    assert len(wrong_bodies(model)) == 29


def test_wrong_steps_and_clones_of_a_trunk(http, model):
    trunk = posted(http, "/v1/trunks", {"model": model.id, "calls": 20}).json()
    name, place = trunk["id"], f"/v1/trunks/{trunk['id']}"
    for step in (-2, 1000, 10**12):
        problem(http.get(f"{place}/states", params={"step": step}), 422)
    problem(http.get(f"{place}/states", params={"step": 1, "as": "gif"}), 422)
    for body in (
        {"step": 1000},
        {"step": -1},
        {"step": 3, "clones": 129},
        {"step": 3, "first": -1},
    ):
        problem(http.post(f"{place}/forks", json=body), 422)
    problem(http.get(f"/v1/forks/{name}~forks.998.3.0"), 404)  # between two visited
    branched = {"model": model.id, "calls": 20, "branches": [{"step": 300, "clone": 1}]}
    own = posted(http, "/v1/trunks", branched).json()["id"]
    early = http.post(f"/v1/trunks/{own}/forks", json={"step": 900, "clones": 2})
    assert "before the trunk's last branch" in problem(early, 422)
    plain = posted(http, "/v1/trunks", {"model": model.id, "calls": 20, "sampler": "ddim"}).json()
    refused = http.post(f"/v1/trunks/{plain['id']}/forks", json={"step": 300})
    assert "adds no noise" in problem(refused, 422)
    fork = posted(http, f"{place}/forks", {"step": 300, "clones": 3}).json()["id"]
    problem(http.get(f"/v1/forks/{fork}/ends", params={"clone": 3}), 422)
    for number in (80, 2**31 - 1, 2**31, 10**30):
        problem(http.get(f"/v1/models/{model.id}/images/{number}"), 422)
    far = f"/v1/uturns/{name}~uturns.{trunk['steps'][5]}.2.i4000000000"
    problem(http.get(far), 422)
    problem(http.get(f"{far}/events"), 422)
    for other in (name.replace(".20.", ".020."), name.replace(".20.", ".\u0662\u0660.")):
        problem(http.get(f"/v1/trunks/{other}"), 404)
    far = http.get(f"/v1/trunks/{name.replace('.0.0', '.0.99')}/states", params={"step": 10**6})
    problem(far, 422)
    lost = f"/v1/uturns/{name}~uturns.{trunk['steps'][5]}.2.u{'0' * 32}"
    assert "post it again" in problem(http.get(lost), 404)


def test_an_answer_that_is_known_is_not_sent_again(http, model):
    trunk = posted(http, "/v1/trunks", {"model": model.id, "calls": 20}).json()["id"]
    for place in (
        f"/v1/trunks/{trunk}",
        f"/v1/trunks/{trunk}/states?step=5",
        f"/v1/models/{model.id}",
    ):
        first = http.get(place)
        tag = first.headers["etag"]
        again = http.get(place, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert http.get(place, headers={"If-None-Match": '"other"'}).content == first.content


def test_the_token_opens_and_nothing_else_does(model):
    with serving(model, token="a token of sixteen") as (address, _), client(address) as http:
        assert http.get("/health").status_code == 200
        for given in (None, "Bearer", "Bearer a token of sixtee", "a token of sixteen", "Bearer é"):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            answer = http.get("/v1/models", headers=headers)
            assert "token" in problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/openapi.json").json()["security"] == [{"token": []}]
        right = {"Authorization": "Bearer a token of sixteen"}
        assert http.get("/v1/models", headers=right).status_code == 200
        # From other machines, by whatever name.
        assert http.get("/v1/models", headers=right | {"Host": "gpu7"}).status_code == 200


def test_pages_of_other_sites_reach_nothing(http):
    problem(http.get("/v1/models", headers={"Host": "evil.example"}), 421)
    problem(http.get("/v1/models", headers={"Host": "127.0.0.1.evil.example"}), 421)
    problem(http.get("/v1/models", headers={"Origin": "https://evil.example"}), 403)
    problem(http.get("/v1/models", headers={"Origin": "null"}), 403)
    problem(http.get("/v1/models", headers={"Origin": "http://["}), 403)
    # What an <img> of another site would ask for, without an Origin.
    problem(http.get("/v1/models", headers={"Sec-Fetch-Site": "cross-site"}), 403)
    assert http.get("/v1/models", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    answer = http.get("/v1/models", headers={"Host": "localhost:1"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy


def test_a_body_past_the_limit_is_refused_before_it_is_read(http):
    large = b"x" * (8 * 2**20 + 1)
    problem(http.post("/v1/trunks", content=large), 413)
    pieces = (b"x" * 2**20 for _ in range(9))  # of no stated length
    problem(http.post("/v1/trunks", content=pieces), 413)
    problem(http.post("/v1/trunks", content=b"{"), 422)
    assert "no JSON" in problem(http.post("/v1/trunks", content=b"{", headers=JSON), 422)
    plain = http.post("/v1/trunks", content=b"{}", headers={"Content-Type": "text/plain"})
    assert "application/json" in problem(plain, 422)
    deep = b"[" * 200_000
    assert http.post("/v1/trunks", content=deep).status_code == 422


def test_nothing_is_answered_before_the_programs_are_ready(model):
    with serving(model, ready=False) as (address, desk), client(address) as http:
        desk.done, desk.of = 3, 12
        answer = http.get("/health")
        assert answer.status_code == 503
        assert answer.json() == {"status": "starting", "done": 3, "of": 12}
        refused = http.get("/v1/models")
        assert "3 of 12" in problem(refused, 503)
        assert "retry-after" in refused.headers
        desk.ready = True
        assert http.get("/health").json()["status"] == "ready"
        assert http.get("/v1/models").status_code == 200


@pytest.mark.slow
def test_a_flood_past_the_queue_is_told_to_come_again_and_then_served(model):
    with serving(model, most=3) as (address, _), client(address) as http:
        bodies = [{"model": model.id, "calls": 1000, "index": index} for index in range(12)]
        answers = [http.post("/v1/trunks", json=body) for body in bodies]
        busy = [answer for answer in answers if answer.status_code == 429]
        assert busy
        for answer in busy:
            problem(answer, 429)
            assert int(answer.headers["retry-after"]) > 0
        taken = [answer for answer in answers if answer.status_code != 429]
        assert len(taken) >= 3
        for answer in taken:
            assert settled(http, answer.headers["Location"]).json()["status"] == "done"
        late = bodies[answers.index(busy[0])]
        assert posted(http, "/v1/trunks", late).json()["status"] == "done"


def events(stream, most=10**9):
    """The events of a stream: (number, name, data)."""
    found, number, name = [], None, None
    for line in stream.iter_lines():
        word, _, rest = line.partition(": ")
        if word == "id":
            number = int(rest)
        elif word == "event":
            name = rest
        elif word == "data":
            found.append((number, name, json.loads(rest)))
            number = None
            if len(found) >= most:
                break
    return found


def test_events_tell_of_every_state_and_go_on_where_one_left(http, model):
    name = http.post("/v1/trunks", json={"model": model.id, "calls": 50, "index": 3}).json()["id"]
    place = f"/v1/trunks/{name}/events"
    with http.stream("GET", place) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        found = events(stream)
    states = [data for _, kind, data in found if kind == "state"]
    trunk = http.get(f"/v1/trunks/{name}").json()
    assert [each["step"] for each in states] == trunk["steps"]
    assert [each["projection"] for each in states] == trunk["along"]["projection"]
    assert [each["classes"] for each in states[:-1]] == trunk["along"]["classes"]
    kinds = [kind for _, kind, _ in found]
    assert kinds[-1] == "end"
    assert found[-1][2] == {"status": "done", "detail": None}
    assert dict((kind, data) for _, kind, data in found)["fate"] == trunk["fate"]  # noqa: C402
    numbers = [number for number, kind, _ in found if kind in ("state", "fate")]
    assert numbers == list(range(52))
    with http.stream("GET", place, headers={"Last-Event-ID": "49"}) as stream:
        rest = events(stream)
    assert [number for number, kind, _ in rest if kind in ("state", "fate")] == [50, 51]


def test_cancelling_ends_the_work_between_two_steps(model):
    with serving(model) as (address, _), client(address) as http:
        body = {"model": model.id, "calls": 1000, "index": 1}
        name = http.post("/v1/trunks", json=body).json()["id"]
        with http.stream("GET", f"/v1/trunks/{name}/events") as stream:
            events(stream, 5)
        assert http.delete(f"/v1/trunks/{name}").status_code == 204
        # Those who look find that out, and begin nothing.
        place = f"/v1/trunks/{name}"
        end = time.monotonic() + 10
        while http.get(place).status_code == 202 and time.monotonic() < end:
            time.sleep(0.02)
        for each in (place, f"{place}/states?step=0"):
            assert "post it again" in problem(http.get(each), 410)
        with http.stream("GET", f"{place}/events") as stream:
            assert events(stream)[-1][2]["status"] == "cancelled"
        # It is begun anew where it is posted again.
        whole = posted(http, "/v1/trunks", body).json()
        assert whole["status"] == "done"
        assert whole["done"] == 1001
        problem(http.delete("/v1/trunks/" + name.replace(".1000.", ".999.")), 404)
        problem(http.delete("/v1/forks/nothing"), 404)


def test_nobody_ends_the_work_that_others_listen_to(model):
    with serving(model) as (address, desk), client(address) as http:
        name = http.post("/v1/trunks", json={"model": model.id, "calls": 1000}).json()["id"]
        place = f"/v1/trunks/{name}"
        found = []

        def listen():
            with httpx.stream("GET", f"{address}{place}/events", timeout=60) as stream:
                found.append(events(stream)[-1][2]["status"])

        listeners = [threading.Thread(target=listen) for _ in range(2)]
        for each in listeners:
            each.start()
        job = desk.worker.find(name)
        while len(job.waiters) < 2:
            time.sleep(0.01)
        assert "others listen" in problem(httpx.delete(f"{address}{place}"), 409)
        for each in listeners:
            each.join()
    assert found == ["done", "done"]


def test_one_who_listens_alone_may_end_it(model):
    with serving(model) as (address, _), client(address) as http:
        name = http.post("/v1/trunks", json={"model": model.id, "calls": 1000}).json()["id"]
        with http.stream("GET", f"/v1/trunks/{name}/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            assert httpx.delete(f"{address}/v1/trunks/{name}").status_code == 204
            last = [line for line in lines if line.startswith("data")][-1]
    assert json.loads(last.partition(": ")[2])["status"] == "cancelled"


def test_work_that_fails_says_why_until_it_is_posted_again(model, monkeypatch):
    with serving(model) as (address, _), client(address) as http:
        body = {"model": model.id, "calls": 20}
        with monkeypatch.context() as patch:
            patch.setattr(programs, "advance", lambda *arguments: 1 / 0)
            place = http.post("/v1/trunks", json=body).headers["Location"]
            assert "server's log" in problem(settled(http, place), 500)
        assert "server's log" in problem(http.get(place), 500)
        assert posted(http, "/v1/trunks", body).json()["status"] == "done"


def test_a_client_that_goes_away_leaves_nothing_behind(model):
    with serving(model) as (address, desk), client(address) as http:
        name = http.post("/v1/trunks", json={"model": model.id, "calls": 1000}).json()["id"]
        job = desk.worker.find(name)
        port = int(address.rpartition(":")[2])
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as rude:
                rude.sendall(
                    f"GET /v1/trunks/{name}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                )
                rude.recv(100)
        settled(http, f"/v1/trunks/{name}")
        end = time.monotonic() + 10
        while job.waiters and time.monotonic() < end:
            time.sleep(0.05)
        assert not job.waiters
        assert http.get("/health").status_code == 200


def test_the_interface_describes_itself_with_examples_and_needs_no_other_site(http):
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    places = set(document["paths"])
    wanted = ("models", "models/{id}", "trunks", "trunks/{id}", "trunks/{id}/events", "samples")
    wanted += ("trunks/{id}/states", "trunks/{id}/forks", "uturns", "denoise", "regimes/{id}")
    assert {f"/v1/{each}" for each in wanted} | {"/health"} <= places
    page = http.get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text.replace(str(http.base_url), "")
    for place in ("/", "/health", "/v1/models"):
        assert http.head(place).status_code == 200
        assert http.head(place).content == b""
    text = json.dumps(document)
    for schema in (
        "TrunkRequest",
        "ForkRequest",
        "TurnRequest",
        "DenoiseRequest",
        "Fate",
        "Problem",
    ):
        own = document["components"]["schemas"][schema]
        assert "examples" in json.dumps(own), schema
    assert "Traceback" not in text


def test_no_request_that_the_document_allows_breaks_the_server(http):
    """Schemathesis draws requests from the OpenAPI document: each is answered, none by a 5xx."""
    schema = schemathesis.openapi.from_url(f"{http.base_url}/openapi.json")
    tried = 0
    for operation in schema.get_all_operations():
        drawn = operation.ok().as_strategy()

        @settings(
            max_examples=12, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=drawn)
        def ask(case):
            nonlocal tried
            if "events" in case.path:
                return  # of a stream that waits, below
            tried += 1
            answer = case.call(base_url=str(http.base_url), timeout=30)
            case.validate_response(answer, checks=(not_a_server_error,))

        ask()
    assert tried > 100


trunks = st.builds(
    ids.TrunkId,
    st.from_regex(r"[a-z0-9-]{1,30}", fullmatch=True),
    st.sampled_from(["exact", "trained", "gaussian"]),
    st.sampled_from(["ancestral", "dpm-solver-2m"]),
    st.integers(2, 1000),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**31 - 1),
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 10**6)), max_size=4).map(tuple),
)
everything = st.one_of(
    trunks,
    st.builds(ids.ForkId, trunks, st.integers(0, 999), st.integers(1, 128), st.integers(0, 10**6)),
    st.builds(ids.TurnId, trunks, st.integers(0, 999), st.integers(1, 128), st.just("i12")),
    st.builds(
        ids.TurnId, trunks, st.integers(0, 999), st.integers(1, 128), st.just("u" + "0a" * 16)
    ),
    st.builds(ids.SampleId, trunks, st.integers(1, 128)),
)


@given(everything)
def test_an_id_says_what_it_was_made_of(made):
    assert ids.parse(type(made), str(made)) == made


@given(st.text(max_size=60))
def test_other_texts_are_no_ids(text):
    for kind in ids.NOUNS:
        try:
            found = ids.parse(kind, text)
        except UserError:
            continue
        assert str(found) == text


@pytest.mark.slow
def test_the_server_lives_through_sixteen_clients_at_once(model):
    """None is lost, and each gets what it would get alone."""
    with serving(model, most=64) as (address, desk), client(address) as http:
        alone = [
            posted(http, "/v1/trunks", {"model": model.id, "calls": 30, "index": i}).json()
            for i in range(2)
        ]
        desk.worker._jobs.clear()
        found, lost = {}, []

        def visit(number):
            try:
                with client(address) as own:
                    for index in range(2):
                        body = {"model": model.id, "calls": 30, "index": index}
                        answer = posted(own, "/v1/trunks", body, pause=0.3).json()
                        found[number, index] = answer
                        step = answer["steps"][10]
                        posted(
                            own,
                            f"/v1/trunks/{answer['id']}/forks",
                            {"step": step, "clones": 3, "first": number},
                        )
            except Exception as error:
                lost.append(error)

        threads = [threading.Thread(target=visit, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not lost
    assert len(found) == 32
    for (_, index), answer in found.items():
        assert answer == alone[index]
    assert np.isfinite(alone[0]["along"]["effective"]).all()
