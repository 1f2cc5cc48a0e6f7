"""The worker of the mailed page against the library: noise, states, clones and the posterior."""

import base64
import io
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browsers import chromium
from mailed_pages import digits, opened
from PIL import Image
from scipy.stats import binomtest

from diffusion_jax.data.arrays import image_set
from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import EmpiricalDenoiser, GaussianDenoiser
from diffusion_jax.regimes import cloning
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.sampling import backward
from diffusion_jax.schedule import cosine_schedule, linear_schedule

SEED, INDEX = 7, 3
SCHEDULE = linear_schedule(1000)
# States in single precision that agree to rounding differ by far less, also after 100 steps.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(browser):
    return opened(browser, digits(200, 10))


@pytest.fixture(scope="module")
def functions(browser):
    """A page in which the worker's own functions can be called."""
    page = browser.new_page()
    for name in ("noise.js", "scores.js", "engine.js"):
        folder = resources.files("diffusion_jax.explorer") / "page"
        page.add_script_tag(content=(folder / name).read_text("utf-8"))
    return page


def process(images, denoiser, sampler="ancestral", calls=100):
    points = images.centred()
    if denoiser == "exact":
        score = EmpiricalDenoiser.fit(SCHEDULE, points, None)
    else:
        rank = min(128, len(points) - 1, points[0].size)
        score = GaussianDenoiser.fit(SCHEDULE, points, rank=rank, floor="rest")
    return backward(SCHEDULE, score, sampler, calls)


def run(page, denoiser="exact", sampler="ancestral", calls=100, **more):
    """A trunk of the page: its body, and its states (visited + 1, d)."""
    request = {"denoiser": denoiser, "sampler": sampler, "calls": calls, "seed": SEED}
    request |= {"index": INDEX, "branches": []} | more
    found = page.evaluate(
        """async (request) => {
          request.model = model;
          if (request.noise) request.noise = Float32Array.from(request.noise);
          window.trunk = await source.trunk(request, {});
          const states = [];
          for (const s of trunk.steps) states.push(Array.from((await source.state(trunk, s)).x));
          return {...trunk, request: null, states};
        }""",
        request,
    )
    return found | {"states": np.array(found["states"])}


def expected_states(images, denoiser, sampler="ancestral", calls=100):
    """The same by `cloning.fork`, from pure noise on (visited, d), and the end (d,)."""
    made = process(images, denoiser, sampler, calls)
    watch = range(calls, 0, -1)
    shape, key = images.images.shape[1:], jax.random.key(SEED)
    found = cloning.fork(
        made.sampler, made.denoiser, key, [1], shape, INDEX, INDEX + 1, watch=watch
    )
    return found.path[0].reshape(calls, -1), found.trunk[0].ravel()


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_bits_are_those_of_jax(functions, seed):
    found = functions.evaluate("seed => Array.from(bitsOf(foldIn(keyOf(seed), START), 999))", seed)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    assert np.array_equal(np.uint32(found), jax.random.bits(key, (999,)))


def test_normal_noise_is_that_of_jax(functions):
    """To the rounding of erfinv's nine terms, in the tails too: 2 10^5 draws go beyond 4."""
    found = np.array(functions.evaluate("() => Array.from(normal(keyOf(3), 200000))"))
    expected = np.asarray(jax.random.normal(jax.random.key(3), (200_000,)))
    assert np.abs(expected).max() > 4
    assert np.all(np.abs(found - expected) <= 1e-6 * np.abs(expected) + 1e-9)


@pytest.mark.parametrize("schedule", [SCHEDULE, cosine_schedule(1000)], ids=["linear", "cosine"])
@pytest.mark.parametrize("calls", [2, 3, 17, 100, 600, 999, 1000])
def test_the_steps_that_calls_take(functions, schedule, calls):
    exact = EmpiricalDenoiser.fit(schedule, np.zeros((2, 1, 1, 1), np.float32), None)
    made = backward(schedule, exact, "ancestral", calls)
    tables = [getattr(schedule, name).tolist() for name in ("beta", "noise_variance", "time")]
    found = functions.evaluate(
        """([beta, variance, time, calls]) => {
          data = {levels: beta.map((b, s) => ({beta: b, variance: variance[s], time: time[s],
            signal: Math.exp(-time[s])}))};
          const {steps, levels} = courseOf(calls);
          return {steps, betas: levels.map(({beta}) => beta)};
        }""",
        [*tables, calls],
    )
    taken = getattr(made.denoiser, "steps", np.arange(1000))
    assert found["steps"] == np.asarray(taken).tolist()
    assert found["betas"] == pytest.approx(made.sampler.schedule.beta.tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("denoiser", "sampler"),
    [
        ("exact", "ancestral"),
        ("gaussian", "ancestral"),
        ("exact", "ddim"),
        ("gaussian", "dpm-solver-2m"),
    ],
)
def test_states_along_a_trunk(page, denoiser, sampler):
    found = run(page, denoiser, sampler, calls=60)
    if sampler == "dpm-solver-2m":  # what it remembers would be forgotten at each stop
        made = process(digits(200, 10), denoiser, sampler, 60)
        end = made.sample(jax.random.key(SEED), INDEX + 1, (8, 8, 1))[INDEX]
        assert np.abs(found["states"][-1] - end.ravel()).max() < CLOSE
        return
    states, end = expected_states(digits(200, 10), denoiser, sampler, 60)
    assert np.abs(found["states"] - np.vstack([states, end])).max() < CLOSE
    assert found["status"] == "done"
    assert len(found["along"]["projection"]) == found["done"] == 61


def test_all_steps_of_the_schedule(page):
    found = run(page, "exact", "ddim", calls=1000)
    made = process(digits(200, 10), "exact", "ddim", 1000)
    end = made.sample(jax.random.key(SEED), INDEX + 1, (8, 8, 1))[INDEX]
    assert found["steps"] == [*range(999, -1, -1), -1]
    assert np.abs(found["states"][-1] - end.ravel()).max() < CLOSE


@pytest.mark.parametrize("denoiser", ["exact", "gaussian"])
def test_noise_that_is_given(page, denoiser):
    """The pure noise, then that of each step taken."""
    noise = np.random.default_rng(0).standard_normal((41, 64)).astype(np.float32)
    found = run(page, denoiser, calls=40, noise=noise.ravel().tolist())
    made = process(digits(200, 10), denoiser, calls=40)
    x, move = jnp.asarray(noise[:1]).reshape(1, 8, 8, 1), jax.jit(type(made.sampler).move)
    for place, z in enumerate(noise[1:]):
        assert np.abs(found["states"][place] - x.ravel()).max() < CLOSE
        step = jnp.int32(39 - place)
        x = move(made.sampler, made.denoiser, x, step, jnp.asarray(z).reshape(x.shape))
    assert np.abs(found["states"][-1] - x.ravel()).max() < CLOSE


def fork(page, step, clones, first=0):
    return page.evaluate(
        """async ([step, clones, first]) => {
          const told = [];
          const handlers = {fates: (event) => told.push(event)};
          const fork = await source.forks(trunk, {step, clones, first}, handlers);
          return {...fork, told, ends: Array.from(await source.ends(fork))};
        }""",
        [step, clones, first],
    )


@pytest.mark.parametrize("denoiser", ["exact", "gaussian"])
def test_clones_are_those_of_fork(page, denoiser):
    """Eleven, so that they come in a full batch and one that is not."""
    trunk = run(page, denoiser, calls=60)
    place, images = 25, digits(200, 10)
    found = fork(page, trunk["steps"][place], 9, first=2)
    made = process(images, denoiser, calls=60)
    expected = cloning.fork(
        *(made.sampler, made.denoiser, jax.random.key(SEED), [60 - place], (8, 8, 1)),
        *(INDEX, INDEX + 1),
        clones=11,
    ).clones[0, 0, 2:]
    ends = np.array(found["ends"]).reshape(9, -1)
    assert np.abs(ends - expected.reshape(9, -1)).max() < CLOSE

    near = nearest(expected, images.centred())
    assert [fate["nearest"] for fate in found["fates"]] == near.index.tolist()
    ratio = np.array([fate["ratio"] for fate in found["fates"]])
    assert np.abs(ratio - near.ratio).max() < CLOSE
    assert [fate["memorised"] for fate in found["fates"]] == near.memorised.tolist()
    labels = images.labels[near.index]
    assert [fate["class"] for fate in found["fates"]] == labels.tolist()
    posterior = EmpiricalDenoiser.fit(SCHEDULE, images.centred(), None).posterior
    log_weights = posterior(jnp.asarray(expected), jnp.zeros(9, jnp.int32))
    own = (images.labels[None] == labels[:, None]) * np.exp(log_weights)
    probability = np.array([fate["probability"] for fate in found["fates"]])
    assert np.abs(probability - own.sum(1)).max() < 1e-3  # the logits are of the size of 10^5
    assert [part["first"] for part in found["told"]] == [0, 8]

    for name, values in (("phi", labels), ("phi_C", near.index)):
        same = int(np.sum(values[0:8:2] == values[1:8:2]))
        assert (found[name]["same"], found[name]["pairs"]) == (same, 4)
        interval = binomtest(same, 4).proportion_ci(method="wilson")
        assert [found[name]["low"], found[name]["high"]] == pytest.approx(list(interval), abs=1e-9)
    for each in found["classes"]:
        count = int(np.sum(labels == each["class"]))
        assert (each["count"], each["value"]) == (count, count / 9)
    assert found["paths"]["steps"] == trunk["steps"][place:]
    assert np.shape(found["paths"]["projection"]) == (9, 61 - place, 2)


def clone_keys(keys, b, clone):
    return jax.random.fold_in(jax.random.fold_in(keys[0], 2**31 - 2 - clone), b)[None]


def test_a_trunk_goes_on_as_a_clone_and_forks_again(page):
    made = process(digits(200, 10), "exact", calls=60)
    steps = np.asarray(made.denoiser.steps)
    branches = [{"step": int(steps[39]), "clone": 5}, {"step": int(steps[19]), "clone": 1}]
    whole = run(page, calls=60)
    trunk = run(page, calls=60, branches=branches)
    assert np.array_equal(trunk["states"][:21], whole["states"][:21])
    assert not np.array_equal(trunk["states"][21], whole["states"][21])

    keys, advance = jax.random.fold_in(jax.random.key(SEED), INDEX)[None], cloning._advance
    states = dict(cloning.trunks(made.sampler, made.denoiser, noise_of(keys), keys, [40]))
    for b, clone, to in ((40, 5, 20), (20, 1, 0)):
        keys = clone_keys(keys, b, clone)
        states[to] = advance(
            made.sampler, made.denoiser, states[b], keys, jnp.int32(b), jnp.int32(to)
        )
        if b == 40:
            before = keys
    for b, x in states.items():
        assert np.abs(trunk["states"][60 - b] - x.ravel()).max() < CLOSE

    # Clones from above the second branch are those of the first alone.
    found = fork(page, int(steps[29]), 1, first=4)
    states = dict(cloning.trunks(made.sampler, made.denoiser, states[40], before, [30], at=40))
    own = clone_keys(before, 30, 4)
    end = advance(made.sampler, made.denoiser, states[30], own, jnp.int32(30), jnp.int32(0))
    assert np.abs(np.array(found["ends"]) - end.ravel()).max() < CLOSE
    assert found["phi"] is None
    assert found["id"].startswith(page.evaluate("model"))


def noise_of(keys):
    start = jax.random.fold_in(keys[0], 2**31 - 1)
    return jax.random.normal(start, (8, 8, 1))[None]


@pytest.mark.parametrize("place", [5, 45, 75, 98])
def test_what_a_state_says(page, place):
    trunk, images = run(page), digits(200, 10)
    found = page.evaluate("step => source.state(trunk, step)", trunk["steps"][place])
    posterior = EmpiricalDenoiser.fit(SCHEDULE, images.centred(), None).posterior
    x = jnp.asarray(trunk["states"][place], jnp.float32).reshape(1, 8, 8, 1)
    weight = np.exp(np.asarray(posterior(x, jnp.array([trunk["steps"][place]])), np.float64))[0]
    classes = np.bincount(images.labels, weight, 10)
    told, tolerance = found["posterior"], 1e-3 if place > 90 else 2e-5

    def entropy(p):
        return -np.sum(p[p > 0] * np.log(p[p > 0]))

    assert told["classes"] == pytest.approx(classes.tolist(), abs=tolerance)
    assert told["entropy"] == pytest.approx(entropy(classes), abs=10 * tolerance)
    assert told["effective"] == pytest.approx(np.exp(entropy(weight)), rel=10 * tolerance)
    assert trunk["along"]["classes"][place] == pytest.approx(told["classes"], abs=1e-6)
    assert found["time"] == pytest.approx(float(SCHEDULE.time[found["step"]]))
    near = told["nearest"]
    assert [each["weight"] for each in near] == pytest.approx(
        np.sort(weight)[::-1][:8].tolist(), abs=tolerance
    )
    for each in near:
        assert each["weight"] == pytest.approx(weight[each["index"]], abs=tolerance)
        assert each["class"] == images.labels[each["index"]]


def test_denoisers_of_one_state(page):
    images, step = digits(200, 10), 300
    x = np.random.default_rng(1).standard_normal((1, 8, 8, 1)).astype(np.float32)
    found = page.evaluate(
        """async ([x, step]) => {
          const names = ["exact", "gaussian"];
          const found = await source.denoise(model, Float32Array.from(x), step, names);
          return [Array.from(found.exact), Array.from(found.gaussian)];
        }""",
        [x.ravel().tolist(), step],
    )
    exact = EmpiricalDenoiser.fit(SCHEDULE, images.centred(), None)
    gaussian = GaussianDenoiser.fit(SCHEDULE, images.centred(), rank=64, floor="rest")
    for denoiser, told in zip((exact, gaussian), found, strict=True):
        expected = denoiser.predict_x_0(jnp.asarray(x), jnp.array([step]))
        assert np.abs(np.array(told) - expected.ravel()).max() < 2e-5


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("given", ["index", "png"])
def test_u_turns(page, given):
    images, made = digits(200, 10), process(digits(200, 10), "exact", calls=60)
    image = {"index": 12} if given == "index" else {"png": as_png(images.images[12])}
    step = int(np.asarray(made.denoiser.steps)[44])
    found = page.evaluate(
        """async ([image, step, seed, index]) => {
          const turn = await source.uturn({model, denoiser: "exact", sampler: "ancestral",
            calls: 60, seed, index, step, returns: 3, image}, {});
          const lists = ["start", "turning", "ends"].map((name) => [name, Array.from(turn[name])]);
          return {...turn, ...Object.fromEntries(lists)};
        }""",
        [image, step, SEED, INDEX],
    )
    start = np.repeat(images.centred(slice(12, 13)), 3, axis=0)
    key = jax.random.key(SEED)
    turning = cloning.turning_points(made.sampler, key, 45, start, INDEX)
    ends = cloning.u_turns(made.sampler, made.denoiser, key, [45], start, INDEX)
    given = images.images[12].ravel() / 255  # as the server sends it, with its mean
    assert np.abs(found["start"] - given).max() < 1e-6
    assert np.abs(np.array(found["turning"]) - turning.ravel()).max() < CLOSE
    assert np.abs(np.array(found["ends"]) - ends.ravel()).max() < CLOSE
    assert (found["step"], found["start_fate"]["nearest"]) == (step, 12)


def test_the_nearest_are_the_nearest_where_their_weights_are_zero(functions):
    """At the least noise, squares that differ by 0.2 make weights that differ by exp(-1000)."""
    points = np.random.default_rng(0).integers(0, 9, (50, 16)) / 8
    x = points[31] + 0.01
    found = functions.evaluate(
        """([values, x]) => {
          const squares = values.map((row) => row.reduce((sum, each) => sum + each * each, 0));
          const points = {values: Float32Array.from(values.flat()), n: 50, d: 16};
          data = {points, squares, labels: null, names: []};
          return posteriorOf(Float32Array.from(x), {signal: 1, variance: 1e-4});
        }""",
        [points.tolist(), x.tolist()],
    )
    near = found["nearest"]
    assert [each["weight"] for each in near] == [1] + 7 * [0]
    squares = np.sum((x - points) ** 2, axis=1)
    assert [each["index"] for each in near] == np.argsort(squares)[:8].tolist()


STEP_REFUSED = """async ([name, step]) => {
  const request = {model, denoiser: "exact", sampler: "ancestral", calls: 9, seed: 0, index: 0,
    branches: []};
  const asked = {
    uturn: () => source.uturn({...request, step, returns: 4, image: {index: 0}}, {}),
    forks: () => source.forks({request}, {step, clones: 2, first: 0}, {}),
    state: () => source.state({request}, step),
    trunk: () => source.trunk({...request, branches: [{step, clone: 0}]}, {}),
  };
  try { await asked[name](); return null; } catch (error) { return [error.message, error.status]; }
}"""


@pytest.mark.parametrize("step", [99999, -2, 3.5])
@pytest.mark.parametrize("name", ["uturn", "forks", "state", "trunk"])
def test_steps_outside_the_schedule_are_refused(page, name, step):
    message, status = page.evaluate(STEP_REFUSED, [name, step])
    assert message.startswith(f"step = {step} lies outside the schedule")
    assert status == 422


REFUSED = """async (change) => {
  const request = {model, denoiser: "exact", sampler: "ancestral", calls: 50, seed: 0, index: 0,
    branches: [], ...change};
  try { await source.trunk(request, {}); return null; }
  catch (error) { return [error.message, error.status]; }
}"""


@pytest.mark.parametrize(
    ("change", "said", "status"),
    [
        ({"denoiser": "trained"}, "no denoiser trained", 422),
        ({"sampler": "euler"}, "no sampler euler", 422),
        ({"calls": 1}, "calls = 1", 422),
        ({"calls": 1001}, "calls = 1001", 422),
        ({"calls": 20.5}, "calls = 20.5", 422),
        ({"seed": -1}, "seed = -1", 422),
        ({"seed": 2**32}, "seed = 4294967296", 422),
        ({"index": 2**31}, "index = 2147483648", 422),
        ({"branches": [{"step": 5, "clone": 0}, {"step": 300, "clone": 0}]}, "descending", 422),
        ({"branches": [{"step": 5, "clone": -1}]}, "clone", 422),
        ({"model": "other"}, "no model other", 404),
    ],
)
def test_what_is_refused(page, change, said, status):
    message, found = page.evaluate(REFUSED, change)
    assert said in message
    assert found == status


def test_images_of_another_size_and_no_png(page):
    turn = """async (png) => { try { await source.uturn({model, denoiser: "exact",
      sampler: "ancestral", calls: 9, seed: 0, index: 0, step: 5, returns: 1, image: {png}}, {}); }
      catch (error) { return [error.message, error.status]; } }"""
    message, status = page.evaluate(turn, as_png(np.zeros((9, 8), np.uint8)))
    assert "8 x 9 pixels" in message
    assert "8 x 8" in message
    assert status == 422
    message, status = page.evaluate(turn, base64.b64encode(b"no image").decode())
    assert "no PNG" in message
    assert status == 422


def test_cancelling_between_two_steps(page):
    """What was reached stays; the same trunk asked for again is run to its end."""
    found = page.evaluate(
        """async () => {
          const request = {model, denoiser: "gaussian", sampler: "ancestral", calls: 1000, seed: 1,
            index: 0, branches: []};
          let id, done = 0;
          const handlers = {begun: (given) => { id = given; },
            state: () => { if (++done === 20) source.cancel("trunks", id); }};
          const cut = await source.trunk(request, handlers);
          const x = (await source.state(cut, cut.steps[5])).x;
          const whole = await source.trunk(request, {});
          const again = (await source.state(whole, cut.steps[5])).x;
          const same = again.every((value, i) => value === x[i]);
          let fork;
          const stopped = await source.forks(whole, {step: 999, clones: 32, first: 0},
            {begun: (given) => { fork = given; }, fates: () => source.cancel("forks", fork)});
          const early = await source.forks({request: {...request, seed: 2}},
            {step: 999, clones: 8, first: 0}, {begun: (given) => source.cancel("forks", given)});
          return {cut, whole, same, stopped, early};
        }"""
    )
    assert found["cut"]["status"] == "cancelled"
    assert 20 <= found["cut"]["done"] < 1001
    assert len(found["cut"]["along"]["projection"]) == found["cut"]["done"]
    assert found["whole"]["status"] == "done"
    assert found["whole"]["done"] == 1001
    assert found["same"]
    assert found["stopped"]["status"] == "cancelled"
    assert 8 <= found["stopped"]["done"] == len(found["stopped"]["fates"]) < 32
    assert (found["early"]["status"], found["early"]["done"]) == ("cancelled", 0)
    assert found["early"]["phi"] is found["early"]["classes"] is None


def colour():
    rng = np.random.default_rng(2)
    labels = np.arange(30) % 2
    centre = rng.uniform(0.3, 0.7, (2, 3, 5, 3))
    pixels = centre[labels] + 0.1 * rng.standard_normal((30, 3, 5, 3))
    return image_set(np.clip(pixels, 0, 1).astype(np.float32), labels)


def without_labels():
    return image_set(digits(40, 2).images, None)


def of_one_class():
    return image_set(digits(40, 2).images, np.zeros(40, int))


def flattened():
    found = digits(40, 2)
    return ImageSet(found.images.reshape(40, 1, 64, 1), found.labels, found.class_names)


@pytest.mark.parametrize("make", [colour, without_labels, of_one_class, flattened])
def test_other_images(browser, make):
    images = make()
    page = opened(browser, images)
    found = run(page, calls=40)
    _, end = expected_states(images, "exact", calls=40)
    assert np.abs(found["states"][-1] - end).max() < CLOSE
    model, shown = page.evaluate(
        """async () => { const {image, ...rest} = await source.image(model, 5);
          return [await source.model(model), {...rest, image: Array.from(image)}]; }"""
    )
    assert model["shape"] == list(images.images.shape[1:])
    assert shown["image"] == pytest.approx((images.centred() + images.mean)[5].ravel(), abs=1e-6)
    forked = fork(page, found["steps"][20], 2)
    regimes = page.evaluate("source.regimes(model)")
    if make in (without_labels, of_one_class):
        assert model["classes"] == []
        assert forked["phi"] is forked["classes"] is found["along"]["classes"] is None
        assert found["fate"]["class"] is shown["class"] is None
        assert set(regimes["curves"]) == {"phi_C"}
        assert forked["phi_C"]["pairs"] == 1
    else:
        assert model["classes"] == list(images.class_names)
        assert shown["class"] == images.labels[5]
        assert forked["phi"]["pairs"] == 1
    page.close()


def test_a_trunk_of_a_thousand_digits_is_quick(browser):
    """The bound is 2 s on an idle machine, where it takes 0.2 to 0.4 s; here others may run."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1000, 28, 28, 1), np.uint8)
    page = opened(browser, image_set(pixels, np.arange(1000) % 10))
    page.evaluate("() => source.denoise(model, new Float32Array(784), 0, ['exact'])")
    took = page.evaluate(
        """async () => {
          const begun = performance.now();
          await source.trunk({model, denoiser: "exact", sampler: "ancestral", calls: 100, seed: 0,
            index: 0, branches: []}, {});
          return performance.now() - begun;
        }"""
    )
    print(f"{took:.0f} ms")
    assert took < 10_000
    page.close()
