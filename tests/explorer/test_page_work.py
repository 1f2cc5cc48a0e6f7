"""Work that the explorer's page asks for: abandoned, shared, lost; and what links may ask."""

import threading
import time

import pytest
from pages import AT_REST, fork, number_of, until

from diffusion_jax.serving import programs
from diffusion_jax.serving.desk import Desk

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_for_few_calls")]
RUNNING = "window.explorer?.session.trunk?.done > 3 && explorer.worker.busy()"
FOCUS = "document.activeElement.id || document.activeElement.tagName"


@pytest.fixture
def slow(monkeypatch):
    """Steps that take so long that no trunk is done before a reader acts."""
    advance = programs.advance

    def slowly(*arguments):
        time.sleep(0.01)
        return advance(*arguments)

    monkeypatch.setattr(programs, "advance", slowly)


def enter(page, name, value):
    page.fill(f"input[name={name}]", str(value))
    page.keyboard.press("Enter")


def test_of_many_changes_the_last_alone_is_left(opened, server, slow, monkeypatch):
    """Nothing listens to what was abandoned, and the server has none of it to do."""
    named, entered = Desk.trunk_id, threading.Event()

    def late(desk, request):
        entered.wait(60)
        return named(desk, request)

    page, asked = opened(), []
    monkeypatch.setattr(Desk, "trunk_id", late)
    page.on(
        "request", lambda request: asked.append((request.method, request.url.split("/v1/")[-1]))
    )
    enter(page, "calls", 1000)
    for seed in range(20, 28):
        enter(page, "seed", seed)
    entered.set()
    until(page, "explorer.session.trunk.request.seed === 27 && " + RUNNING)
    known = server.desk.worker._jobs.values()
    unfinished = [job.id for job in known if not (job.ended or job.cancelled)]
    assert [name for name in unfinished if not name.startswith("denoise")] == [
        page.evaluate("explorer.session.trunk.id")
    ]
    ended = {url for method, url in asked if method == "DELETE"}
    assert ended
    assert len([url for method, url in asked if method == "POST" and url == "trunks"]) < 8
    for url in ended:
        after = asked[asked.index(("DELETE", url)) :]
        assert ("GET", f"{url}/events") not in after
    page.click("#cancel")
    assert page.evaluate(FOCUS) == "axis"
    until(page, "document.getElementById('doing').textContent === 'Cancelled'")
    page.keyboard.press("ArrowLeft")
    enter(page, "calls", 40)
    until(page, f"explorer.session.trunk.done === 41 && {AT_REST}")
    assert page.locator("#error").inner_text() == ""


def test_what_another_tab_listens_to_goes_on(opened, server, slow):
    link = "calls=1000&seed=31"
    page, other = opened(link, rest=RUNNING), opened(link, rest=RUNNING)
    enter(page, "calls", 40)
    until(page, f"explorer.session.trunk.done === 41 && {AT_REST}")
    done = other.evaluate("explorer.session.trunk.done")
    until(other, f"explorer.session.trunk.done > {done} + 5")
    assert other.locator("#error").inner_text() == ""
    other.click("#cancel")


def test_states_that_are_not_there(opened, server, slow):
    """Null before the trunk comes there; the server's sentence once it never will."""
    page = opened("calls=1000&seed=32", rest=RUNNING)
    state = "explorer.source.state(explorer.session.trunk, -1)"
    assert page.evaluate("explorer.source.state({id: explorer.session.trunk.id}, -1)") is None
    page.click("#cancel")
    until(page, f"{state}.then(() => false, ({{message}}) => message.includes('cancelled'))")
    enter(page, "calls", 40)
    until(page, f"explorer.session.trunk.done === 41 && {AT_REST}")


def test_a_trunk_goes_on_when_a_lost_server_is_back(opened, server, slow):
    page, asked = opened("calls=200&seed=33", rest=RUNNING), []
    server.stop()
    page.on("request", lambda request: asked.append(time.monotonic()))
    page.locator("#axis").focus()
    page.keyboard.press("ArrowLeft")
    page.evaluate(
        "for (let i = 0; i < 6; i++) void explorer.source.image(explorer.session.model.id, i)"
    )
    page.wait_for_timeout(2500)
    since = asked[0] + 0.5  # each pending request is refused once
    assert len([at for at in asked if at > since]) <= 3
    server.start()
    until(page, f"explorer.session.trunk.done === 201 && {AT_REST}")
    until(page, "explorer.at()?.step === explorer.session.step()")
    assert page.locator("#error").inner_text() == ""


def test_a_server_that_hangs_is_not_alive(opened):
    page = opened()
    page.route("**/health", lambda route: None)
    page.evaluate(
        """() => { const given = AbortSignal.timeout.bind(AbortSignal);
          AbortSignal.timeout = (ms) => given(ms / 20); }"""
    )
    until(page, "explorer.source.alive().then((alive) => !alive)", 5)
    until(page, "document.getElementById('banner').textContent !== ''", 5)
    page.unroute_all()


def test_links_of_what_cannot_be(opened):
    page = opened("calls=40&denoiser=magic&sampler=euler")
    said = page.locator("#error").inner_text()
    assert "no denoiser “magic”: this is mixture" in said
    assert "no sampler “euler”: this is ancestral" in said
    page.select_option("select[name=denoiser]", "exact")
    until(page, f"explorer.session.state.denoiser === 'exact' && {AT_REST}")
    assert page.locator("#error").inner_text() == ""
    wrong = ["0:454:30000000:0", "::::", "0:1:0:0", "0:1:129:0", "0:1:8:1000001", "0:1:8",
             "-1:2:8:0", "0:1.5:8:0", "0: 1:8:0", "0:1e2:8:0", "0:0x1:8:0"]  # fmt: skip
    of = "(text) => import('address').then(({fromFragment}) => fromFragment(text))"
    assert page.evaluate(of, f"#forks={','.join(wrong)},3:4:128:1000000")["forks"] == [
        {"index": 3, "step": 4, "clones": 128, "first": 1_000_000, "branches": []}
    ]
    for uturn in ("", "::", "1:2:", "1:2:129", "1:2:3:4", "1:-1:3"):
        assert page.evaluate(of, f"#uturn={uturn}")["uturn"] is None


def test_a_u_turn_leaves_with_its_sample(opened):
    page = opened("calls=40")
    page.click("#turn")
    until(page, "location.hash.includes('uturn=')")
    enter(page, "index", 3)
    until(page, f"explorer.session.trunk.request.index === 3 && {AT_REST}")
    assert page.locator("#turned").inner_text() == ""
    until(page, "location.hash.includes('index=3') && !location.hash.includes('uturn')")


def test_why_nothing_can_begin_and_where_the_focus_stays(opened):
    page = opened("calls=40")
    page.keyboard.press("End")
    assert not page.locator("#fork").is_enabled()
    assert "nothing left to run" in page.locator("#turn-why").inner_text()
    page.select_option("select[name=sampler]", "ddim")
    until(page, f"explorer.session.state.sampler === 'ddim' && {AT_REST}")
    page.evaluate("explorer.session.moveTo(12)")
    assert "all clones would be equal" in page.locator("#fork-why").inner_text()
    assert page.locator("#turn").is_enabled()
    page.select_option("select[name=sampler]", "ancestral")
    until(page, f"explorer.session.state.sampler === 'ancestral' && {AT_REST}")
    fork(page, "32")
    assert page.evaluate(FOCUS) == "fork"
    page.locator("button.clone").nth(5).focus()
    page.evaluate("explorer.session.shown = [...explorer.session.forks.keys()][0]")
    page.evaluate("document.getElementById('shown').dispatchEvent(new Event('change'))")
    assert (
        page.evaluate("[...document.querySelectorAll('.clone')].indexOf(document.activeElement)")
        == 5
    )
    page.keyboard.press("Enter")
    until(page, "explorer.session.state.branches.length === 1 && " + AT_REST)
    page.get_by_role("button", name="trunk", exact=True).focus()
    page.keyboard.press("Enter")
    until(page, "explorer.session.state.branches.length === 0 && " + AT_REST)
    assert page.evaluate(FOCUS) == "axis"
    assert number_of(page) == 12


def test_three_digits(opened):
    of = (
        "import('elements').then(({short}) => [1.0149, 1.0001, 0.5, 0, 1, 1234.5, 3e-5].map(short))"
    )
    assert opened().evaluate(of) == ["1.01", "1.00", "0.500", "0", "1", "1230", "3.0e-5"]


def test_names_where_there_is_little_room(opened):
    of = "(names) => import('elements').then(({brief}) => brief(names))"
    page = opened()
    assert page.evaluate(of, ["class number 7", "class number 10"]) == ["7", "10"]
    assert page.evaluate(of, ["a cat", "a", "a dog"]) == ["a cat", "a", "a dog"]
    assert page.evaluate(of, ["new york", "new"]) == ["new york", "new"]
    assert page.evaluate(of, []) == []
