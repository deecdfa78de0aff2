"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Machines that run tests are small and shared: how long an example takes says nothing about the code.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")
