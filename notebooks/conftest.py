"""What `pytest --nbval notebooks` needs to know."""

from pathlib import Path

import pytest

# The Chinese notebooks have the code and the outputs of the English ones: tests/test_tutorial.py compares them, so
# running them would show nothing new and take as long again.
collect_ignore = ["zh"]


def pytest_configure(config):
    if hasattr(config.option, "nbval_sanitize_with"):  # nbval is installed
        config.option.nbval_sanitize_with = str(Path(__file__).with_name("sanitize.cfg"))


def pytest_collection_modifyitems(items):
    """Skip page 11 where it would show stored results, whose first line is another one."""
    page = [item for item in items if item.path.name == "11_platforms.ipynb"]
    if page and (reason := _missing()):
        for item in page:
            item.add_marker(pytest.mark.skip(reason=f"page 11 shows stored results here: {reason}"))


def _missing() -> str:
    """Say which of the tools of page 11 is not installed; empty where all are."""
    from tfpar import errors, export
    from tfpar.fpga import tools

    try:
        tools.require(simulation=True)
        export.require("tflite")
    except errors.Unavailable as reason:
        return str(reason)
    return ""
