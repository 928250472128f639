"""What all tests share: markers, and hypothesis made repeatable, so that a failure in CI is a failure here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(__file__).parents[1] / ".cache" / "hypothesis")  # and no .hypothesis beside it

settings.register_profile(
    "cnikit",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("cnikit")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "ours: the behaviour is cnikit's own, where the reference differs; with the reference's executables "
        'in CNIKIT_TEST_BIN everything else must pass (pytest -m "not ours")',
    )
