"""Print pyproject.toml's lower bounds as exact versions, one a line, for `make test-oldest`.

Usage: python .ci/floors.py [EXTRA ...]

`torch>=2.8.0` becomes `torch==2.8.0`. Reading the bounds where they are declared keeps the versions
that are promised and those that are tested the same.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pip carries the same parser
    from pip._vendor import tomli as tomllib

BOUND = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?>=(?P<version>[0-9][^,;\s]*)$")


def floors(extras: list[str]) -> list[str]:
    """Return `name==version` of every requirement of the package and of `extras`."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    pins = []
    for requirement in requirements:
        bound = BOUND.match(requirement)
        if bound is None:
            raise ValueError(f"requirement must read name>=version, got {requirement!r}")
        pins.append(f"{bound['name']}=={bound['version']}")
        if bound["name"] == "pytorch-lightning":
            # The same release under its other import name, which the callbacks support too.
            pins.append(f"lightning=={bound['version']}")
    return pins


if __name__ == "__main__":
    print("\n".join(floors(sys.argv[1:])))
