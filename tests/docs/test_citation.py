"""What CITATION.cff says of the release is what the code and the changelog say."""

import re

import yaml
from doc_pages import ROOT

import diffusion_jax as dj


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == dj.__version__
    # Until a release there is no section with a version and a date.
    heading = r"^## \[?v?(\d+\.\d+\.\d+)\]?\D*?(\d{4}-\d\d-\d\d)"
    dated = re.findall(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = (citation["version"], citation["date-released"].isoformat())
    assert dated[:1] in ([], [released])


def test_the_citation_names_works_that_can_be_found():
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert len(references) >= 2
    for each in references:
        assert each["title"]
        assert all(author["family-names"] for author in each["authors"])
        assert "doi" in each or re.fullmatch(r"arXiv:\d{4}\.\d{5}", each["identifiers"][0]["value"])
