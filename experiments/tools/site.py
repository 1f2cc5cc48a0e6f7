"""The site, from docs/ and the code: python -m experiments.tools.site."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

from diffusion_jax.errors import UserError
from experiments.command import parse, reports_errors
from experiments.tools.pages import assembly, built

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Options:
    """Makes the site: pages in build/pages from docs/, README and the docstrings, then build/site.

    A page that is in no menu, a link or an anchor that is not there, and a formula that cannot be
    typeset end it with status 1.
    """

    serve: bool = False
    """show the site on http://localhost:8000 as well, until Ctrl-C"""


@reports_errors
def main() -> None:
    """Runs the command."""
    chosen = parse(Options, "tools.site")
    build = ROOT / "build"
    for folder in ("pages", "site"):
        shutil.rmtree(build / folder, ignore_errors=True)
    settings = assembly.assemble(build)
    zensical = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if subprocess.run([*zensical, "--config-file", settings], cwd=ROOT).returncode:
        raise UserError("the site was not made, for the reasons above")
    built.finish(build / "site")
    if wrong := built.broken_links(build / "site"):
        raise UserError("links of the site that lead nowhere: " + "; ".join(wrong))
    print(f"the site is in {build / 'site'}")
    if chosen.serve:
        subprocess.run([sys.executable, "-m", "http.server", "--directory", build / "site", "8000"])


if __name__ == "__main__":
    main()
