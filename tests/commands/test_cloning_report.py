"""What the report of forks says of few images, of what is missing, and of awkward names."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from diffusion_jax.judging import quality
from experiments import cloning_report


class Judge:
    """Its features are the pixels."""

    mean = np.zeros(1, np.float32)

    def features(self, x):
        return x.reshape(len(x), -1)


def findings(n, trunks=30):
    rng = np.random.default_rng(n)
    points, trunk = (rng.standard_normal((k, 2, 2, 1)).astype(np.float32) for k in (n, trunks))
    return SimpleNamespace(
        judge=Judge(),
        outcomes=SimpleNamespace(trunk=trunk),
        images=SimpleNamespace(mean=Judge.mean),
        points=points,
    )


@pytest.mark.parametrize("n", range(2, 51))
def test_the_quality_of_few_images_is_what_can_be_computed(n):
    found, missing = cloning_report._quality(findings(n))
    real, fake = (x.reshape(len(x), -1) for x in (findings(n).points, findings(n).outcomes.trunk))
    assert np.isfinite(found["kernel_distance"])
    assert np.isfinite(found["kernel_distance_standard_error"]) == (n >= 4)
    if n >= 20:
        distance = quality.kid(real, fake, 10, min(n, 30) // 10, seed=0)
        assert found["kernel_distance"] == distance.mean
    if n < 4:
        assert found["kernel_distance"] == quality.mmd2(real, fake)
        assert found["precision"] is found["recall"] is None
    else:
        cover = quality.precision_recall(real, fake)
        assert (found["precision"], found["recall"]) == (cover.precision, cover.recall)
    assert len(missing) == (2 if n < 4 else 0)
    assert all(f"{n}" in text for text in missing)
    rows = {row[0]: row[1] for row in cloning_report._quality_rows(found)}
    assert ("s.e." in rows["kernel distance (classifier features)"]) == (n >= 4)
    assert ("precision, recall" in rows) == (n >= 4)
    assert not any("nan" in text or "None" in text for text in rows.values())


def test_a_table_prints_all_text_as_it_is():
    file = io.StringIO()
    rows = [["samples of class [red]x", "[/]", ":dog: \\"]]
    console = Console(file=file, width=100)
    console.print(cloning_report.printed(["", "[b]trained", "exact"], rows))
    for text in ("samples of class [red]x", "[/]", ":dog: \\", "[b]trained"):
        assert text in file.getvalue()
