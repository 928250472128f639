"""What all tests share: markers, and hypothesis made repeatable, so that a failure in CI is a failure here."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

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
