"""Refuses a Python that the pinned versions cannot be installed for, before anything is
downloaded.

`make` runs this file with `$(PYTHON)`. It must itself run on old Pythons: no f-strings, nothing
but the standard library.
"""

import os
import sys


def named(path):
    """The Pythons that settings.ini names, oldest first: [(3, 11), (3, 12), ...]"""
    with open(path) as file:
        lines = [line.split("=", 1) for line in file if line.split("=")[0].strip() == "pythons"]
    return [tuple(int(part) for part in name.split(".")) for name in lines[0][1].split()]


def verdict(version, known):
    """(refused, one line or "") for a Python (major, minor) where the Pythons `known` are named"""
    first, last, this = [".".join(str(part) for part in v) for v in (known[0], known[-1], version)]
    if version < known[0]:
        return True, (
            "deffi_lab: Python {} is too old, {} to {} are supported: "
            "name another, for example make lab PYTHON=python{}".format(this, first, last, last)
        )
    if version > known[-1]:
        return False, (
            "deffi_lab: Python {} was not tested, {} to {} were: if the installation fails, "
            "try make lab PYTHON=python{}".format(this, first, last, last)
        )
    return False, ""


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    refused, line = verdict(
        tuple(sys.version_info[:2]), named(os.path.join(here, "..", "settings.ini"))
    )
    if line:
        sys.stderr.write(line + "\n")
    sys.exit(1 if refused else 0)
