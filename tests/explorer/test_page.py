"""The explorer's page in Chromium, against a server: what a reader does and sees."""

import io
import re
import time

import jax
import numpy as np
import pytest
import two_convolutions
from axe_playwright_python import sync_playwright as axe
from pages import AT_REST, CLASSES, drawn_at_cursor, fork, number_of, until
from PIL import Image
from scipy.stats import binomtest, norm
from tiny_runs import digits, make_run

from diffusion_jax.config import ModelConfig
from diffusion_jax.regimes.cloning import fork as forked
from diffusion_jax.serving import programs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_for_few_calls")]


def test_what_is_seen_first(opened):
    page = opened()
    assert page.locator("#axis").get_attribute("role") == "slider"
    # The cursor rests near t_S, where clones part.
    t_s = page.evaluate("explorer.session.model.regimes.t_S_phi.value")
    times = page.evaluate("explorer.session.trunk.times")
    distances = np.abs(np.log(np.array(times[:-1]) / t_s))
    assert number_of(page) == distances.argmin()
    assert page.locator("#fork").is_enabled()
    page.keyboard.press("End")
    said = page.locator("#axis").get_attribute("aria-valuetext")
    assert re.match(r"t = 0, data: class (<i>-m</i>|\+m) with [01]\.\d\d, (copies|nearest)", said)
    page.keyboard.press("Home")
    said = page.locator("#axis").get_attribute("aria-valuetext")
    assert re.fullmatch(r"t = \d\.\d+, step \d+, class (<i>-m</i>|\+m) with [01]\.\d\d", said)
    drawn_at_cursor(page)
    assert page.locator("#states canvas").count() == 1 + 3 + 2  # x_t, denoisers, differences
    assert page.locator("#posterior figure").count() == 8
    assert page.locator("#posterior i, #fates i").count() == 0
    assert CLASSES[0] in page.locator("#posterior").inner_text()
    assert page.locator("#potential path").count() == 1
    boxes = [each.bounding_box() for each in page.locator("#axis .regime").all()]
    assert len(boxes) >= 3
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart_x = a["x"] >= b["x"] + b["width"] or b["x"] >= a["x"] + a["width"]
            apart_y = abs(a["y"] - b["y"]) > 10
            assert apart_x or apart_y


def test_scrubbing_goes_to_the_time_under_the_pointer(opened, server):
    page = opened()
    box = page.locator("#axis").bounding_box()
    for share in (0.3, 0.6):
        page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + box["height"] - 25)
        page.mouse.down()
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] - 25)
        page.mouse.up()
        thumb = page.locator("#axis .cursor").bounding_box()
        assert abs(thumb["x"] - box["x"] - share * box["width"]) < 0.02 * box["width"]
    step = page.evaluate("explorer.session.step()")
    x = drawn_at_cursor(page)
    trunk = page.evaluate("explorer.session.trunk.id")
    sent = page.request.get(f"{server.url}v1/trunks/{trunk}/states?step={step}&as=npy").body()
    np.testing.assert_array_equal(np.load(io.BytesIO(sent), allow_pickle=False).reshape(-1), x)


def test_keys_play_and_step(opened):
    page = opened()
    page.keyboard.press("Home")
    assert number_of(page) == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert number_of(page) == 1
    page.keyboard.press(" ")
    until(page, "explorer.session.number >= 5")
    page.keyboard.press(" ")
    there = number_of(page)
    page.wait_for_timeout(300)
    assert number_of(page) == there
    page.keyboard.press("End")
    assert page.evaluate("explorer.session.step()") == -1


def test_32_fates_arrive_and_a_link_shows_the_same_bytes(opened, server):
    page = opened()
    fork(page)
    assert page.locator("button.clone").count() == 32
    found = page.evaluate("explorer.session.shownFork()")
    classes = [fate["class"] for fate in found["fates"]]
    same = sum(classes[i] == classes[i + 1] for i in range(0, 32, 2))
    assert (found["phi"]["same"], found["phi"]["pairs"]) == (same, 16)
    assert page.locator("#curves .point").count() == 2
    assert page.locator("#tree .branch").count() == 32
    x = drawn_at_cursor(page)
    ends = page.evaluate("[...explorer.session.shownFork().ends]")
    until(page, "location.hash.includes('forks=0:')")
    before = page.url
    server.stop()
    server.start()  # one that has to compute all of it again
    other = opened(before.partition("#")[2])
    until(other, "!!explorer.session.shownFork()?.ends")
    until(other, f"location.href === {before!r}")
    np.testing.assert_array_equal(drawn_at_cursor(other), x)
    assert other.evaluate("[...explorer.session.shownFork().ends]") == ends


def test_a_clone_becomes_the_trunk_and_there_is_a_way_back(opened):
    page = opened()
    fork(page, "8")
    end = page.evaluate("[...explorer.session.shownFork().ends.subarray(3 * 64, 4 * 64)]")
    trunk = page.evaluate("explorer.session.trunk.id")
    page.locator("button.clone").nth(3).focus()
    page.keyboard.press("Enter")
    until(page, "explorer.session.state.branches.length === 1 && " + AT_REST)
    page.keyboard.press("End")
    np.testing.assert_allclose(
        drawn_at_cursor(page), end, atol=1e-5
    )  # another batch rounds otherwise
    page.evaluate("explorer.session.moveTo(20)")
    fork(page, "8", 20)
    assert page.evaluate("explorer.session.shownFork().trunk") == page.evaluate(
        "explorer.session.trunk.id"
    )
    page.get_by_role("button", name="trunk", exact=True).click()
    until(page, f"explorer.session.trunk.id === {trunk!r} && {AT_REST}")
    assert page.evaluate("explorer.session.state.branches") == []


def test_forks_of_several_samples_are_pooled(opened):
    page = opened("calls=40")
    step = page.evaluate("explorer.session.trunk.steps[12]")
    page = opened(f"calls=40&step={step}&forks=0:{step}:8:0,1:{step}:8:0,1:{step}:8:8")
    until(
        page,
        "explorer.session.state.forks.length === 3 && explorer.session.forks.size === 3 && "
        "[...explorer.session.forks.values()].every((fork) => fork.ends)",
    )
    same = page.evaluate("[...explorer.session.forks.values()].map((fork) => fork.phi.same)")
    said = page.locator("#curves").get_attribute("aria-label")
    assert f"({sum(same)} of 12 pairs, 2 trunks)" in said
    interval = binomtest(sum(same), 12).proportion_ci(method="wilson")
    assert f"[{interval.low:.2f}, {interval.high:.2f}]" in said


def test_cancelling_ends_the_work(opened, server, monkeypatch):
    page, advance = opened(), programs.advance

    def slowly(*arguments):
        time.sleep(0.01)
        return advance(*arguments)

    monkeypatch.setattr(programs, "advance", slowly)  # so that it cannot be done before
    page.fill("input[name=calls]", "1000")
    page.keyboard.press("Enter")
    until(page, "explorer.session.trunk.done > 3 && explorer.worker.busy()")
    job = server.desk.worker.find(page.evaluate("explorer.session.trunk.id"))
    page.click("#cancel")
    assert page.locator("#doing").inner_text() == "Cancelled"
    end = time.monotonic() + 10
    while job.status != "cancelled":
        assert time.monotonic() < end
        time.sleep(0.01)
    page.wait_for_timeout(300)
    assert server.desk.worker.find(job.id) is job  # nor does anything begin it again
    assert 3 < page.evaluate("explorer.session.trunk.done") < 1000
    monkeypatch.undo()
    page.fill("input[name=calls]", "40")
    page.keyboard.press("Enter")
    until(page, f"explorer.session.trunk.done === 41 && {AT_REST}")


def test_a_lost_server_is_waited_for(opened, server):
    page = opened()
    server.stop()
    until(page, "document.getElementById('banner').textContent !== ''")
    page.fill("input[name=index]", "5")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert page.evaluate("explorer.worker.busy()")
    server.start()
    until(page, f"explorer.session.trunk.request.index === 5 && {AT_REST}")
    until(page, "document.getElementById('banner').textContent === ''")


def test_a_token_is_taken_from_the_address_once(opened, server):
    server.stop()
    server.start("a token of 16 letters")
    try:
        page = opened("token=a%20token%20of%2016%20letters&calls=40")
        until(page, "location.hash.includes('seed=0')")
        assert "token" not in page.url
        page.reload()
        until(page, AT_REST)
        page = opened("calls=40", rest="document.getElementById('error')?.textContent !== ''")
        assert "token" in page.locator("#error").inner_text()
    finally:
        server.stop()
        server.start()


def test_all_of_it_by_keyboard(opened):
    page = opened()

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
        raise AssertionError(f"Tab never comes to {selector}")

    tab_to("input[name=seed]")
    page.keyboard.press("Control+A")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    until(page, f"explorer.session.trunk.request.seed === 3 && {AT_REST}")
    tab_to("#jumps button")
    page.keyboard.press("Enter")
    tab_to("#clones")
    page.keyboard.press("8")
    tab_to("#fork")
    page.keyboard.press("Enter")
    until(page, "explorer.session.shownFork()?.ends?.length === 8 * 64")
    tab_to("button.clone")
    tab_to("#turn")
    page.keyboard.press("Enter")
    until(page, "!!explorer.session.turn")


LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True},
}


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_is_in_the_way_of_a_reader(opened, look):
    page = opened(**LOOKS[look])
    fork(page, "8")
    page.click("#turn")
    until(page, f"!!explorer.session.turn && {AT_REST}")
    drawn_at_cursor(page)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_image_of_ones_own_turns(opened, tmp_path):
    page = opened()
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "own.png")
    page.evaluate("explorer.session.moveTo(15)")
    page.set_input_files("input[type=file]", tmp_path / "own.png")
    until(page, f"!!explorer.session.turn && {AT_REST}")
    start = page.evaluate("[...explorer.session.turn.start]")
    np.testing.assert_allclose(start, grey.reshape(-1) / 255, atol=1e-6)
    (tmp_path / "none.png").write_bytes(b"no image")
    page.set_input_files("input[type=file]", tmp_path / "none.png")
    until(page, "document.getElementById('error').textContent.includes('no image')")


def test_errors_are_said(opened):
    page = opened()
    page.goto(page.url.partition("#")[0] + "#model=cats")
    until(page, "document.getElementById('error').textContent.includes('cats')")
    assert page.locator("#error").get_attribute("role") == "alert"


def test_the_address_holds_the_state(opened):
    page = opened()
    branches = [{"step": 90, "clone": 4}, {"step": 8, "clone": 0}]
    state = {
        "model": "a&b=c#1", "denoiser": "exact", "sampler": "ancestral", "calls": 40, "seed": 7,
        "index": 2, "step": -1, "branches": branches,
        "uturn": {"index": 1, "step": 30, "returns": 4},
        "forks": [
            {"index": 2, "step": 30, "clones": 8, "first": 32, "branches": branches},
            {"index": 3, "step": 9, "clones": 8, "first": 0, "branches": []},
        ],
    }  # fmt: skip
    again = "import('address').then((a) => a.fromFragment(a.toFragment(state)))"
    assert page.evaluate(f"(state) => {again}", state) == state


def test_files_are_what_they_say(opened):
    page = opened()
    fork(page, "8")
    x = drawn_at_cursor(page)

    def downloaded(name):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=name, exact=True).click()
        return waiting.value.path().read_bytes()

    array = np.load(io.BytesIO(downloaded("xₜ, .npy")), allow_pickle=False)
    assert array.shape == (8, 8, 1)
    np.testing.assert_array_equal(array.reshape(-1), x)
    ends = np.load(io.BytesIO(downloaded("Ends, .npy")), allow_pickle=False)
    assert ends.shape == (8, 8, 8, 1)
    for name in ("Pictures at the cursor, PNG", "Ends, PNG"):
        with Image.open(io.BytesIO(downloaded(name))) as image:
            assert image.format == "PNG"
            assert image.size[0] > 32
    for name in ("Curves, SVG", "Tree, SVG"):
        text = downloaded(name).decode()
        assert text.startswith("<svg")
        assert "var(" not in text


def test_the_python_lines_compute_what_is_seen(opened):
    page = opened("calls=40&seed=3&index=2&denoiser=exact")
    fork(page, "8")
    page.locator("button.clone").nth(1).click()
    until(page, "explorer.session.state.branches.length === 1 && " + AT_REST)
    fork(page, "8", 20)
    x, ends = drawn_at_cursor(page), page.evaluate("[...explorer.session.shownFork().ends]")
    names = {}
    exec(page.locator("#python").input_value(), names)
    # float32 sums of 500 weights in another order, through 40 steps that forget errors
    np.testing.assert_allclose(np.asarray(names["x_t"]).reshape(-1), x, atol=1e-4)
    np.testing.assert_allclose(np.asarray(names["ends"]).reshape(-1), ends, atol=1e-3)


def test_python_lines_of_a_data_set(opened):
    page = opened()
    of = """import('python').then(({pythonLines}) => pythonLines(
        {name: 'mnist', kind: 'data', denoisers: [{name: 'gaussian'}]},
        {denoiser: 'gaussian', sampler: 'ancestral', calls: 4, seed: 1, branches: [], index: 3},
        {steps: [999, 600, 200, 0, -1]}, 200,
        {index: 3, branches: [], step: 200, clones: 2, first: 5}))"""
    names = {}
    exec(page.evaluate(of), names)
    process, shape = names["process"], names["shape"]
    expected = forked(
        process.sampler, process.denoiser, jax.random.key(1), [2], shape, 3, 4, clones=7, watch=[2]
    )
    np.testing.assert_allclose(names["x_t"], expected.path[:, 0], atol=1e-4)
    np.testing.assert_allclose(names["ends"], expected.clones[0, 0, 5:], atol=1e-4)


def test_python_lines_of_a_run(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelConfig, "build", two_convolutions.build)
    of = """(name) => import('python').then(({pythonLines}) => pythonLines({name, kind: 'run'},
        {denoiser: 'trained', sampler: 'ancestral', calls: 4, seed: 1, branches: [], index: 2},
        {steps: [9, 6, 3, 0, -1]}, -1, null))"""
    names, folder = {}, make_run(tmp_path / "made", *digits(0, 12))
    exec(opened().evaluate(of, str(folder)), names)
    run = names["run"]
    expected = run.backward("ancestral", 4).sample(jax.random.key(1), 3, run.shape)[2]
    np.testing.assert_allclose(names["x_t"][0], expected, atol=1e-5)


def test_the_potential_is_that_of_the_mixture(opened):
    page = opened()
    law, t, q = {"dimension": 64, "mu": 0.25, "sigma": 0.1}, 0.4, np.linspace(-3, 3, 13)
    of = "([law, t, q]) => import('potential').then((p) => q.map(p.potential(law, t).V))"
    values = page.evaluate(of, [law, t, q.tolist()])
    centre = 8 * 0.25 * np.exp(-t)
    spread = np.sqrt(1 - np.exp(-2 * t) + 0.1**2 * np.exp(-2 * t))
    density = norm.pdf(q, centre, spread) / 2 + norm.pdf(q, -centre, spread) / 2
    np.testing.assert_allclose(np.diff(values), -np.diff(np.log(density)), atol=1e-12)
