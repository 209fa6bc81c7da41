"""What all tests share: which of them run side by side, and that annotated shapes hold.

`make test` runs the tests in several processes. One process takes all tests of a file, so that what
a file prepares is prepared once, and one process takes all browser tests, one after another.

While the tests run, the shapes and types that annotations state are checked. Bad input is given on
purpose inside `pytest.raises`: there the library's own check must answer, so annotations are not
checked. `DEFFI_LAB_UNCHECKED=1` switches the checks off.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import pytest

BROWSER = "browser"
FLOORS = ("numeric", "data", "nets", "methods")  # their annotations state shapes
PACKAGE = Path(__file__).resolve().parents[1] / "deffi_lab"


def checked() -> list[str]:
    """Modules to check; not those that numba compiles, since it keeps no wrapped function"""
    files = [p for floor in FLOORS for p in sorted((PACKAGE / floor).rglob("*.py"))]
    kernels = ("numba.njit", "import compiled\n")
    files = [p for p in files if p.name != "__init__.py"]
    files = [p for p in files if not any(k in p.read_text() for k in kernels)]
    return [".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in files]


if not os.environ.get("DEFFI_LAB_UNCHECKED"):
    jaxtyping.install_import_hook(checked(), "typed.checker")

plain_raises = pytest.raises


@contextmanager
def raises(*args, **kwargs) -> Iterator[pytest.ExceptionInfo]:
    """`pytest.raises`, inside which annotations are not checked"""
    before = jaxtyping.config.jaxtyping_disable
    with plain_raises(*args, **kwargs) as caught:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield caught
        finally:
            jaxtyping.config.update("jaxtyping_disable", before)


pytest.raises = raises


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests for `--dist loadgroup`; the browser tests, the longest group, go first"""
    for item in items:
        group = BROWSER if item.get_closest_marker("browser") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)
