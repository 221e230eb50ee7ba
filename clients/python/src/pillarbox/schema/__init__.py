"""The SQL of the schema ``pillarbox``: what the program ``pillarbox`` prints and runs.

The files beside this one are made by ``make python-schema``, never by hand.
"""

from __future__ import annotations

from importlib import resources

_BEGIN = "begin isolation level read committed;\n"
_COMMIT = "\ncommit;\n"


def version() -> int:
    """The newest version, which every script leads to."""
    names = [file.name for file in resources.files(__name__).iterdir()]
    return 1 + max(int(name[5:-4]) for name in names if name.startswith("from_"))


def script(installed: int) -> str:
    """What ``pillarbox migrate --print --from INSTALLED`` prints; 0: nothing is installed."""
    return read(f"from_{installed}")


def statements(installed: int) -> str:
    """The same without ``begin`` and ``commit``, for a transaction that is open."""
    text = script(installed)
    if not (text.startswith(_BEGIN) and text.endswith(_COMMIT)):
        raise ValueError("the script is not one transaction; run `make python-schema`")
    return text[len(_BEGIN) : -len(_COMMIT)]


def read(name: str) -> str:
    """One file, without its ending."""
    return resources.files(__name__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
