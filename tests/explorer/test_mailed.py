"""The page to mail: what is in it, that it sends nothing, and that its forks obey the posterior."""

import json
import re
import socket
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from browsers import chromium
from mailed_pages import RESULT, digits, opened
from scipy.stats import binomtest

from diffusion_jax.data.arrays import image_set
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.explorer import mailed
from diffusion_jax.regimes import posterior
from experiments import regimes

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")
NAMES = ("</script><b>", "<!--<script>")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def shown(browser, folder, text, wait="text=t = 0"):
    """The page opened from the disk once its trunk has come to data, with what it asked for."""
    path = folder / mailed.NAME
    path.write_text(text)
    page, asked, wrong = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(path.as_uri())
    page.wait_for_selector(wait)
    return page, asked, wrong


def test_it_opens_from_the_disk_and_asks_for_nothing(browser, tmp_path):
    """Only the file itself, and the worker that it makes; names of classes stay names."""
    found = digits(60, 2)
    images = ImageSet(found.images, found.labels, NAMES)
    text = mailed.page_of(images, "a<b>&</title>", RESULT)
    page, asked, wrong = shown(browser, tmp_path, text)
    page.locator("canvas").first.wait_for()
    assert "60 images travel with this page" in page.inner_text("body")
    assert page.title() == "Explorer of a<b>&</title>"
    page.get_by_role("button", name="Fork here").wait_for()
    page.evaluate("() => document.querySelector('#axis').focus()")
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="Fork here").click()
    page.wait_for_selector("text=32 of 32 clones")
    assert page.locator("b").count() == 0
    assert NAMES[0] in page.inner_text("body") or NAMES[1] in page.inner_text("body")
    assert not wrong
    own = [url for url in asked if not url.startswith(("blob:", "data:"))]
    assert own == [(tmp_path / mailed.NAME).as_uri()]
    page.close()


def without_labels():
    return image_set(digits(60, 2).images, None)


def flattened():
    found = digits(60, 2)
    return ImageSet(found.images.reshape(60, 1, 64, 1), found.labels, found.class_names)


def colours():
    pixels = np.random.default_rng(0).random((40, 5, 7, 3), np.float32)
    return image_set(pixels, np.arange(40) % 3)


@pytest.mark.parametrize("make", [without_labels, flattened, colours])
def test_other_images(browser, tmp_path, make):
    images = make()
    nowhere = {"Lambda": dict.fromkeys(("value", "low", "high")), "phi_floor": None, "curves": {}}
    text = mailed.page_of(images, "others", RESULT if images.labels is not None else nowhere)
    page, _, wrong = shown(browser, tmp_path, text)
    page.locator("#axis").focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="Fork here").click()
    page.wait_for_selector("text=32 of 32 clones")
    page.get_by_role("button", name="Turn at the cursor").click()
    page.wait_for_selector("text=Up to t")
    assert not wrong
    assert not page.inner_text("#error")
    page.close()


@pytest.mark.parametrize("denoiser", ["exact", "gaussian"])
def test_the_python_lines_compute_what_is_seen(browser, denoiser):
    """But for how the images are read, which the lines leave to the data set's name."""
    images = digits(60, 2)
    page = browser.new_page()
    page.set_content(mailed.page_of(images, "digits", RESULT))
    page.wait_for_selector("text=t = 0")
    page.select_option("[name=denoiser]", denoiser)
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_function(
        "name => document.querySelector('#python').value.includes(name)",
        arg="GaussianDenoiser" if denoiser == "gaussian" else "closed_form(",
    )
    page.wait_for_selector("text=t = 0")
    lines = page.locator("#python").input_value()
    names = {"digits": lambda: images}
    exec(re.sub(r"load\(.*?\),", "digits(),", lines), names)
    end = page.evaluate(
        """denoiser => import("local").then(async ({makeSource}) => {
          const source = makeSource(), [{id}] = await source.models();
          const request = {model: id, denoiser, sampler: "ancestral", calls: 100, seed: 0, index: 0,
            branches: []};
          const trunk = await source.trunk(request, {});
          return Array.from((await source.state(trunk, -1)).x);
        })""",
        denoiser,
    )
    assert np.abs(np.array(end) - np.asarray(names["x_t"]).ravel()).max() < 1e-4
    page.close()


TRIED = """async (there) => {
  const broken = [];
  document.addEventListener("securitypolicyviolation", (event) => {
    broken.push(event.effectiveDirective);
  });
  await fetch(there).catch(() => null);
  try { new WebSocket(there.replace("http", "ws")); } catch { broken.push("threw"); }
  for (const tag of ["img", "script", "video"]) {
    const element = document.createElement(tag);
    element.src = there;
    document.body.append(element);
  }
  navigator.sendBeacon(there);
  const code = `fetch("${there}").catch(() => postMessage("no"))`;
  const worker = new Worker(URL.createObjectURL(new Blob([code])));
  await new Promise((go) => { worker.onmessage = go; });
  await new Promise((go) => setTimeout(go, 300));
  return broken;
}"""


def test_the_policy_forbids_every_connection(browser, tmp_path):
    """Whatever is tried, by the page or by a worker of it, nobody who listens hears of it."""
    page, _, _ = shown(browser, tmp_path, mailed.page_of(digits(60, 2), "digits", RESULT))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        broken = page.evaluate(TRIED, address)
        listening.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listening.accept()
        # A page without the policy is heard.
        free = browser.new_page()
        free.evaluate("there => fetch(there, {mode: 'no-cors'}).catch(() => null) && null", address)
        listening.settimeout(10)
        listening.accept()[0].close()
        free.close()
    assert {"connect-src", "img-src", "script-src-elem", "media-src"} <= set(broken)
    page.close()


class _Scripts(HTMLParser):
    """The texts of the elements with an id."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = {}, None

    def handle_starttag(self, tag, attributes):
        self.inside = dict(attributes).get("id") if tag == "script" else None

    def handle_data(self, data):
        if self.inside:
            self.found[self.inside] = self.found.get(self.inside, "") + data


def content(text):
    parser = _Scripts()
    parser.feed(text)
    return json.loads(parser.found["data"])


def test_names_do_not_end_the_element_that_holds_them():
    found = digits(60, 2)
    images = ImageSet(found.images, found.labels, NAMES)
    text = mailed.carried(images, "</script><b>", RESULT)
    held = content(text)
    assert held["model"]["classes"] == list(NAMES)
    assert held["model"]["name"] == "</script><b>"
    assert text.count("</script") == 2


def test_names_that_are_no_text_or_look_like_paths():
    """A byte that is not UTF-8 is shown escaped, as everywhere; /page/ is no file of the page."""
    found = digits(60, 2)
    images = ImageSet(found.images, found.labels, ("caf\udce9", '"/page/left'))
    text = mailed.page_of(images, 'a"/page/\udce9', RESULT)
    held = content(text)["model"]
    assert held["classes"] == [r"caf\xe9", '"/page/left']
    assert held["name"] == r'a"/page/\xe9'
    assert held["trained_on"].startswith(r'a"/page/\xe9: ')
    text.encode()


def test_what_is_said_of_classes_where_there_are_none():
    said = "class of its nearest training image"
    assert said in content(mailed.carried(digits(60, 2), "digits", RESULT))["about"]
    nowhere = {"Lambda": dict.fromkeys(("value", "low", "high")), "phi_floor": None, "curves": {}}
    assert said not in content(mailed.carried(without_labels(), "digits", nowhere))["about"]


def test_long_names_fit_a_phone(browser, tmp_path):
    """Nothing is wider than the page, and no name has "class" said before it twice."""
    found = digits(100, 10)
    names = (*(f"class number {label}" for label in range(9)), "long" * 45)
    text = mailed.page_of(ImageSet(found.images, found.labels, names), "names", RESULT)
    page, _, wrong = shown(browser, tmp_path, text)
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator("canvas").first.wait_for()
    page.locator("#axis").focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="Fork here").click()
    page.wait_for_selector("text=32 of 32 clones")
    page.get_by_role("button", name="Turn at the cursor").click()
    page.wait_for_selector("text=Up to t")
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert "class class" not in page.inner_html("body").lower()
        page.select_option("#controls [name=sampler]", "ddim")
        page.locator("#axis").focus()
        page.keyboard.press("End")
    tall = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.what')].map((e) => e.offsetHeight))"
    )
    assert tall < 50
    assert not wrong
    page.close()


def test_a_part_travels_where_all_would_be_too_much(browser):
    """The first of each class in proportion; the page says of how many, and what is of all."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [600, 300, 3])[rng.permutation(903)]
    images = image_set(rng.integers(0, 256, (903, 4, 4, 3), np.uint8), labels)
    limit = 20_000
    held = content(mailed.carried(images, "noise", RESULT, limit))
    count = held["model"]["num_images"]
    assert len(held["images"]["data"]) <= limit
    assert len(held["images"]["data"]) > 0.9 * limit
    kept = np.bincount(held["labels"])
    assert kept[2] == 1
    assert kept[0] == pytest.approx(2 * kept[1], abs=2)
    assert f"{count} of the 903 images travel with this page" in held["about"]
    assert "curves and the Gaussian score are of all 903" in held["about"]
    assert f"{count} of the 903 images" in held["model"]["trained_on"]

    chosen = mailed.first_of_each(labels, 903, count)
    for label in range(3):
        own = chosen[labels[chosen] == label]
        assert np.array_equal(own, np.flatnonzero(labels == label)[: len(own)])
    page = opened(browser, images, most_bytes=limit)
    last = page.evaluate("i => source.image(model, i).then((x) => Array.from(x.image))", count - 1)
    assert last == pytest.approx(images.images[chosen[-1]].ravel() / 255)
    message = page.evaluate("i => source.image(model, i).catch((e) => e.message)", count)
    assert f"no image {count}" in message
    page.close()


def test_no_more_images_travel_than_a_worker_is_quick_with(monkeypatch):
    """Empty images take next to no bytes."""
    monkeypatch.setattr(mailed, "MOST_VALUES", 64 * 50)
    images = ImageSet(np.zeros((100, 8, 8, 1), np.uint8), np.arange(100) % 2, ("0", "1"))
    images.images[:2] = 255
    assert content(mailed.carried(images, "empty", RESULT))["model"]["num_images"] == 50


def test_images_that_are_too_large_for_a_page():
    images = image_set(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8), None)
    with pytest.raises(UserError, match="more than the 5000 that may travel"):
        mailed.carried(images, "noise", RESULT, 5000)


PHI = """async ([forks, steps]) => {
  const counted = steps.map(() => [0, 0]);
  for (let index = 0; index < forks; index++) {
    const request = {model, denoiser: "exact", sampler: "ancestral", calls: CALLS, seed: 11, index,
      branches: []};
    const trunk = await source.trunk(request, {});
    for (const [i, step] of steps.entries()) {
      const fork = await source.forks(trunk, {step, clones: 2, first: 0}, {});
      counted[i][0] += fork.phi.same;
      counted[i][1] += fork.phi_C.same;
    }
  }
  return counted;
}"""


def test_phi_of_forks_agrees_with_the_posterior_engine(browser):
    """250 trunks, two clones at each of three times, against E sum_c p(c | x_t)^2.

    The size of 200 steps changes these probabilities by 0.005 at most, as 10 000 forks in Python
    tell: less than a fifth of the standard error of 250.
    """
    images, forks, calls = digits(100, 2), 250, 200
    page = opened(browser, images)
    model = page.evaluate("source.model(model)")
    times = np.array(model["times"])
    taken = page.evaluate(
        """calls => source.trunk({model, denoiser: "exact", sampler: "ancestral", calls, seed: 0,
          index: 0, branches: []}, {}).then((trunk) => trunk.steps)""",
        calls,
    )[:-1]
    steps = [min(taken, key=lambda step: abs(times[step] - time)) for time in (0.15, 0.3, 0.6)]
    counted = page.evaluate(PHI.replace("CALLS", str(calls)), [forks, steps])
    draws = posterior.draw(images.centred(), images.labels, times[steps], jax.random.key(0), 20_000)
    phi = np.mean(np.sum(draws.class_probability**2, axis=2), axis=0)
    phi_c = draws.collision.mean(axis=0)
    for (same, same_c), p, p_c in zip(counted, phi, phi_c, strict=True):
        assert binomtest(same, forks, min(p, 1.0)).pvalue > 1e-3
        assert binomtest(same_c, forks, p_c).pvalue > 1e-3
    page.close()


def test_the_command_writes_it_and_a_later_study_removes_it(tmp_path, monkeypatch, capsys):
    found = digits(60, 2)
    np.savez(tmp_path / "mine.npz", images=found.images, labels=found.labels)
    out = tmp_path / "out"
    arguments = ["--data", tmp_path / "mine.npz", "--out", out, "--accuracy", "0.05"]
    arguments += ["--max-draws", "100"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["regimes", *map(str, (*arguments, *more))])
        try:
            regimes.main()
        except SystemExit as exit:
            return exit.code
        return 0

    assert run("--explorer") == 0
    assert "explorer.html (" in capsys.readouterr().out
    text, result = (out / "explorer.html").read_text(), (out / "result.json").read_text()
    assert "explorer.html" in json.loads(result)["files"]
    assert str(tmp_path) not in text
    held, result = content(text), json.loads(result)
    assert held["model"]["name"] == "mine"
    assert held["model"]["regimes"]["t_C_phi"] == result["t_C_phi"]
    assert held["regimes"]["curves"]["phi"]["mean"] == result["curves"]["phi"]["mean"]
    assert not re.search(r'(src|href)="/', text)

    assert run() == 0
    assert not (out / "explorer.html").exists()
    assert "explorer.html" not in json.loads((out / "result.json").read_text())["files"]
    (out / "explorer.html").write_text("mine")
    assert run("--explorer") == 1
    assert "explorer.html, which no study" in capsys.readouterr().err
    assert (out / "explorer.html").read_text() == "mine"
    assert run("--explorer", "--symmetry", "flip") == 1
    assert "--symmetry" in capsys.readouterr().err


def test_a_study_with_a_symmetry_is_refused():
    symmetric = SimpleNamespace(symmetry=SimpleNamespace(name="flip"))
    found = SimpleNamespace(analysis=symmetric)
    with pytest.raises(UserError, match="not that with the symmetry flip"):
        mailed.page(found)
