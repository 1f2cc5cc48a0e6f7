"""What the server answers is what the library computes, whoever else asks at the same time."""

import base64
import io
import json
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_convolutions
from scipy.stats import binomtest
from servers import client, digit_set, posted, serving, settled, small_model
from tiny_runs import digits, make_run

from diffusion_jax.config import ModelConfig
from diffusion_jax.regimes import cloning, posterior
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.sampling import SAMPLERS
from diffusion_jax.sampling.backward import closed_form
from diffusion_jax.serving import opening
from diffusion_jax.training import run

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

CALLS, SEED = 60, 3


def array(found):
    return np.frombuffer(base64.b64decode(found["data"]), "<f4").reshape(found["shape"])


def request(model, **changed):
    return {"model": model.id, "denoiser": "exact", "calls": CALLS, "seed": SEED} | changed


def trunk(http, model, **changed):
    return posted(http, "/v1/trunks", request(model, **changed)).json()


def state(http, name, step):
    return http.get(f"/v1/trunks/{name}/states", params={"step": step}).json()


def library(model, denoiser="exact", sampler="ancestral", calls=CALLS):
    return closed_form(denoiser, model.schedule, model.points, model.images.labels, sampler, calls)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("calls", [2, 7, CALLS])
def test_a_trunk_ends_where_the_library_s_sample_does(http, model, sampler, calls):
    found = trunk(http, model, sampler=sampler, calls=calls, index=5)
    process = library(model, sampler=sampler, calls=calls)
    expected = process.sample(jax.random.key(SEED), 6, model.shape)[5]
    end = array(state(http, found["id"], -1)["x"])
    np.testing.assert_allclose(end, expected, atol=2e-4)
    assert found["status"] == "done"
    assert found["done"] == len(found["steps"]) == calls + 1


def test_states_are_the_library_s_trunk_and_say_what_the_posterior_says(http, model):
    found, process = trunk(http, model, index=2), library(model)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(SEED), jnp.array([2]))
    noise = jax.random.normal(jax.random.fold_in(keys[0], 2**31 - 1), model.shape)[None]
    stops = [40, 20, 5]
    for b, x in cloning.trunks(process.sampler, process.denoiser, noise, keys, stops):
        step = found["steps"][CALLS - b]
        answer = state(http, found["id"], step)
        assert answer["step"] == step
        ours = array(answer["x"])
        np.testing.assert_allclose(ours, x[0], atol=1e-4)
        # Brute force in float64.
        t = float(model.schedule.time[step])
        points = model.points.reshape(len(model.points), -1).astype(np.float64)
        distance = np.sum((ours.reshape(-1) - np.exp(-t) * points) ** 2, axis=1)
        logits = -distance / (2 * -np.expm1(-2 * t))
        p = np.exp(logits - logits.max())
        p /= p.sum()
        classes = np.bincount(model.images.labels, p)
        said, place = answer["posterior"], CALLS - b
        np.testing.assert_allclose(said["classes"], classes, atol=1e-4)
        entropy = -np.sum(classes * np.log(np.maximum(classes, 1e-300)))
        np.testing.assert_allclose(said["entropy"], entropy, atol=1e-3)
        inner = -np.sum(p * np.log(np.maximum(p, 1e-300)))
        np.testing.assert_allclose(said["effective"], np.exp(inner), rtol=1e-3)
        weights = [near["weight"] for near in said["nearest"]]
        np.testing.assert_allclose(weights, np.sort(p)[::-1][:8], atol=1e-4)
        np.testing.assert_allclose(
            p[[near["index"] for near in said["nearest"]]], weights, atol=1e-4
        )
        np.testing.assert_allclose(found["along"]["classes"][place], classes, atol=1e-4)
        np.testing.assert_allclose(found["along"]["effective"][place], said["effective"], rtol=1e-5)


def test_any_step_has_the_nearest_state(http, model):
    found = trunk(http, model)
    steps = np.array(found["steps"])
    for step in (-1, 0, 1, 123, 500, 998, 999):
        answer = http.get(f"/v1/trunks/{found['id']}/states", params={"step": step})
        nearest = int(answer.headers["Step"])
        assert abs(nearest - step) == np.abs(steps - step).min()
        assert nearest == answer.json()["step"]


def test_states_come_as_npy_and_png_too(http, model):
    found = trunk(http, model)
    place = f"/v1/trunks/{found['id']}/states"
    x = array(state(http, found["id"], 300)["x"])
    raw = http.get(place, params={"step": 300, "as": "npy"}).content
    np.testing.assert_array_equal(np.load(io.BytesIO(raw), allow_pickle=False), x)
    from PIL import Image

    picture = Image.open(io.BytesIO(http.get(place, params={"step": 300, "as": "png"}).content))
    expected = np.rint(255 * np.clip(x + model.images.mean, 0, 1))[..., 0]
    np.testing.assert_array_equal(np.asarray(picture), expected)


def fork(http, name, step, clones, first=0):
    body = {"step": step, "clones": clones, "first": first}
    return posted(http, f"/v1/trunks/{name}/forks", body).json()


def ends_of(http, found):
    return array(http.get(f"/v1/forks/{found['id']}/ends").json()["x"])


@pytest.mark.parametrize(("clones", "first"), [(3, 0), (11, 4)])
def test_clones_end_where_the_library_s_do(http, model, clones, first):
    name, b = trunk(http, model, index=4)["id"], 30
    step = trunk(http, model, index=4)["steps"][CALLS - b]
    found = fork(http, name, step, clones, first)
    process = library(model)
    forks = cloning.fork(
        *(process.sampler, process.denoiser, jax.random.key(SEED), [b], model.shape, 4, 5),
        clones=first + clones,
    )
    np.testing.assert_allclose(ends_of(http, found), forks.clones[0, 0, first:], atol=2e-4)
    nearest = [fate["nearest"] for fate in found["fates"]]
    flat = model.points.reshape(len(model.points), -1)
    distances = np.linalg.norm(ends_of(http, found).reshape(clones, 1, -1) - flat[None], axis=2)
    assert nearest == distances.argmin(axis=1).tolist()
    two = np.sort(distances, axis=1)[:, :2]
    ratios = [fate["ratio"] for fate in found["fates"]]
    np.testing.assert_allclose(ratios, two[:, 0] / two[:, 1], atol=1e-5)
    assert [fate["memorised"] for fate in found["fates"]] == (two[:, 0] < two[:, 1] / 3).tolist()
    labels = model.images.labels[nearest]
    assert [fate["class"] for fate in found["fates"]] == labels.tolist()
    assert [each["count"] for each in found["classes"]] == np.bincount(labels, minlength=2).tolist()
    same = labels[: 2 * (clones // 2) : 2] == labels[1::2]
    assert found["phi"]["same"] == same.sum()
    assert found["phi"]["pairs"] == clones // 2
    assert found["phi_C"]["same"] == sum(a == b for a, b in zip(nearest[::2], nearest[1::2]))  # noqa: B905


def test_a_clone_s_own_trunk_ends_with_the_clone_and_can_be_forked_again(http, model):
    plain = trunk(http, model, index=1)
    step, later = plain["steps"][20], plain["steps"][35]
    found = fork(http, plain["id"], step, 4)
    own = trunk(http, model, index=1, branches=[{"step": step, "clone": 3}])
    end = array(state(http, own["id"], -1)["x"])
    np.testing.assert_allclose(end, ends_of(http, found)[3], atol=2e-4)
    np.testing.assert_array_equal(
        array(state(http, own["id"], step)["x"]), array(state(http, plain["id"], step)["x"])
    )
    again = fork(http, own["id"], later, 2)
    deeper = [{"step": step, "clone": 3}, {"step": later, "clone": 1}]
    last = trunk(http, model, index=1, branches=deeper)
    end = array(state(http, last["id"], -1)["x"])
    np.testing.assert_allclose(end, ends_of(http, again)[1], atol=2e-4)
    # The projection is the state's along two orthonormal modes.
    paths = np.array(again["paths"]["projection"])
    modes = np.asarray(model.modes)
    np.testing.assert_allclose(modes @ modes.T, np.eye(2), atol=1e-4)
    np.testing.assert_allclose(
        paths[:, -1], ends_of(http, again).reshape(2, -1) @ modes.T, atol=1e-5
    )
    assert len(again["paths"]["steps"]) == paths.shape[1]


def test_u_turns_are_the_library_s(http, model):
    body = request(model, index=6, returns=3, step=450, image={"index": 9})
    found = posted(http, "/v1/uturns", body).json()
    process, b = library(model), trunk(http, model)["steps"][::-1].index(found["step"])
    points = np.repeat(model.points[9:10], 3, axis=0)
    key = jax.random.key(SEED)
    expected = cloning.u_turns(process.sampler, process.denoiser, key, [b], points, first=6)
    np.testing.assert_allclose(array(found["ends"]), expected[:, 0], atol=2e-4)
    up = cloning.turning_points(process.sampler, key, b, points, first=6)
    np.testing.assert_allclose(array(found["turning"]), up, atol=1e-5)
    np.testing.assert_allclose(
        array(found["start"]), model.points[9] + model.images.mean, atol=1e-6
    )
    assert found["start_fate"]["nearest"] == 9


def test_an_image_that_is_sent_turns_as_the_training_image_that_it_is(http, model):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(model.images.images[9, ..., 0]).save(file, "PNG")
    sent = {"png": base64.b64encode(file.getvalue()).decode()}
    values = (model.points[9] + model.images.mean).astype("<f4").clip(0, 1)
    text = {"shape": list(values.shape), "data": base64.b64encode(values.tobytes()).decode()}
    common = {"returns": 2, "step": 450}
    bodies = [
        request(model, **common, image=each) for each in ({"index": 9}, sent, {"array": text})
    ]
    by_number, by_png, by_array = (posted(http, "/v1/uturns", each).json() for each in bodies)
    for other in (by_png, by_array):
        np.testing.assert_allclose(array(other["ends"]), array(by_number["ends"]), atol=1e-4)


def test_samples_are_the_library_s(http, model):
    body = request(model, denoiser="gaussian", index=2, count=5)
    found = posted(http, "/v1/samples", body).json()
    images = array(http.get(f"/v1/samples/{found['id']}/images").json()["x"])
    expected = library(model, "gaussian").sample(jax.random.key(SEED), 7, model.shape)[2:]
    np.testing.assert_allclose(images, expected, atol=2e-4)


def test_denoisers_are_asked_of_the_same_state(http, model):
    x = state(http, trunk(http, model)["id"], 400)
    body = {"model": model.id, "x": x["x"], "step": x["step"]}
    found = http.post("/v1/denoise", json=body).json()
    assert list(found["denoised"]) == ["exact", "gaussian"]
    for name, prediction in found["denoised"].items():
        denoiser = model.denoisers[name]
        steps = jnp.array([x["step"]])
        expected = denoiser.predict_x_0(jnp.asarray(array(x["x"]))[None], steps)[0]
        np.testing.assert_allclose(array(prediction), expected, atol=2e-4)
    assert found["posterior"] == x["posterior"]


def test_the_same_request_has_the_same_bytes_after_a_restart_and_beside_others(http, model):
    """Ids that another server gave are computed anew, among other requests, to the last bit."""
    name = trunk(http, model, index=8)["id"]
    forked = fork(http, name, 500, 9)["id"]
    places = [
        *(f"/v1/trunks/{name}", f"/v1/trunks/{name}/states?step=300", f"/v1/forks/{forked}"),
        f"/v1/forks/{forked}/ends?as=npy",
    ]
    before = [settled(http, place).content for place in places]
    with serving(model) as (address, _), client(address) as other:
        crowd = [
            threading.Thread(target=lambda i=i: trunk(other, model, index=100 + i, calls=50 + i))
            for i in range(6)
        ]
        for each in crowd:
            each.start()
        after = [settled(other, place).content for place in reversed(places)][::-1]
        for each in crowd:
            each.join()
    assert after == before


def test_results_that_were_dropped_are_computed_again(model):
    with serving(model, kept_bytes=1) as (address, desk), client(address) as http:
        first = trunk(http, model, index=1)
        for index in range(2, 5):
            trunk(http, model, index=index)
        assert desk.worker.find(first["id"]) is None
        assert settled(http, f"/v1/trunks/{first['id']}").json() == first


def test_phi_of_many_forks_is_the_posterior_engine_s(http, model):
    """Of 100 trunks, a pair of clones each; the chain of 40 steps is the process's to a percent."""
    t = 0.5
    step = int(np.abs(np.asarray(model.schedule.time) - t).argmin())
    same = {"phi": 0, "phi_C": 0}
    for index in range(100):
        name = f"{model.id}.exact.ancestral.40.{SEED}.{index}"
        found = fork(http, name, step, 2)
        for which in same:
            same[which] += found[which]["same"]
    times = np.array([found["time"]])
    draws = posterior.draw(model.points, model.images.labels, times, jax.random.key(0), 4000)
    expected = {"phi": np.mean(np.sum(draws.class_probability[:, 0] ** 2, axis=1))}
    expected["phi_C"] = np.mean(draws.collision[:, 0])
    for which, count in same.items():
        assert 0.02 < expected[which] < 0.97
        assert binomtest(count, 100, float(expected[which])).pvalue > 1e-3


def test_a_network_s_trunks_are_its_run_s_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelConfig, "build", two_convolutions.build)
    folder = make_run(tmp_path / "made", *digits(0, 40), steps=40)  # as many images as `model` has
    trained = run.load_model(folder)
    images = trained.own_images(digit_set())
    made = small_model("run", ("trained", "exact"), images, run=trained)
    assert made.kind == "run"
    with serving(made) as (address, _), client(address) as http:
        for sampler, calls in (("ancestral", 40), ("ddim", 12)):
            found = trunk(http, made, denoiser="trained", sampler=sampler, calls=calls, index=3)
            expected = trained.backward(sampler, calls).sample(jax.random.key(SEED), 4, made.shape)[
                3
            ]
            end = array(state(http, found["id"], -1)["x"])
            np.testing.assert_allclose(end, expected, atol=1e-4)
        described = http.get(f"/v1/models/{made.id}").json()
        assert described["network"]["updates"] == 0
        assert described["denoisers"][0]["name"] == "trained"


def test_the_mixture_s_points_are_of_its_law_and_its_score_is_the_closed_one():
    law, images = opening.mixture(), opening.mixture_images()
    points = images.centred().reshape(len(images.images), -1)
    signs = np.where(images.labels == 1, 1, -1)
    # The mean of 500 x 64 numbers, and their variance, to five standard errors.
    assert abs(np.mean(points * signs[:, None]) - law.mu) < 5 * law.sigma / np.sqrt(points.size)
    spread = np.std(points - law.mu * signs[:, None])
    assert abs(spread / law.sigma - 1) < 5 / np.sqrt(2 * points.size)
    assert isinstance(law, GaussianMixture)
    assert points.shape[1] == law.dimension


def test_the_regimes_are_the_study_s(http, model):
    found = http.get(f"/v1/regimes/{model.id}").json()
    assert found == model.result
    described = http.get(f"/v1/models/{model.id}").json()
    assert described["regimes"]["t_S_phi"] == found["t_S_phi"]
    np.testing.assert_allclose(described["times"], model.schedule.time, rtol=1e-6)
    assert json.dumps(found)


def test_nearest_images_are_told_apart_where_all_other_weights_underflow(http, model):
    found = trunk(http, model, index=3)
    answer = state(http, found["id"], 0)
    x = array(answer["x"]).reshape(-1).astype(np.float64)
    signal = np.exp(-answer["time"])
    points = model.points.reshape(len(model.points), -1)
    order = np.argsort(np.linalg.norm(x - signal * points, axis=1))[:8]
    said = [near["index"] for near in answer["posterior"]["nearest"]]
    assert answer["posterior"]["nearest"][7]["weight"] == 0
    assert said == order.tolist()
    assert answer["posterior"]["effective"] >= 1


def test_names_that_are_no_text_are_shown_escaped():
    images = replace(digit_set(), class_names=("caf\udce9", "<b>"))
    made = small_model(images=images)
    with serving(made) as (address, _), client(address) as http:
        described = http.get(f"/v1/models/{made.id}").json()
        assert described["classes"] == ["caf\\xe9", "<b>"]
        assert list(http.get(f"/v1/regimes/{made.id}").json()["per_class"]) == described["classes"]
