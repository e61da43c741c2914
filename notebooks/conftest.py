"""What `pytest --nbval notebooks` needs to know."""

from pathlib import Path

# The Chinese notebooks have the code and the outputs of the English ones: tests/test_tutorial.py compares them, so
# running them would show nothing new and take as long again.
collect_ignore = ["zh"]


def pytest_configure(config):
    if hasattr(config.option, "nbval_sanitize_with"):  # nbval is installed
        config.option.nbval_sanitize_with = str(Path(__file__).with_name("sanitize.cfg"))
