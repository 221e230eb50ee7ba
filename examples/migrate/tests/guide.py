"""A guide in docs/migrate: its fenced blocks, each under a comment that names it.

<!-- test: NAME -->
```sh
"""

from __future__ import annotations

import re
from pathlib import Path

from testkit import ROOT

GUIDES = ROOT / "docs/migrate"

_NAMED = re.compile(r"<!-- test: ([\w.-]+) -->\n```\w+\n(.*?)```\n", re.DOTALL)


def blocks(guide: str) -> dict[str, str]:
    """The blocks that a test runs, by name. Every block has a name or says why it is not run."""
    text = (GUIDES / f"{guide}.md").read_text()
    found = _NAMED.findall(text)
    named = dict(found)
    assert len(named) == len(found), f"{guide}: a name is there twice"
    fences = len(re.findall(r"(?m)^```\w+$", text))
    untested = text.count("<!-- not run")
    assert fences == len(named) + untested, f"{guide}: a block has no name"
    return named


def all_guides() -> set[str]:
    """Every guide, by the name of its file."""
    return {file.stem for file in Path(GUIDES).glob("*.md")} - {"README"}
