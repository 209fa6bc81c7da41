"""What all tests share: which of them run side by side.

`make test` runs the tests in several processes. One process takes all tests of a file, so that what
a file prepares is prepared once, and one process takes all browser tests, one after another.
"""

import pytest

BROWSER = "browser"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests for `--dist loadgroup`; the browser tests, the longest group, go first"""
    for item in items:
        group = BROWSER if item.get_closest_marker("browser") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)
