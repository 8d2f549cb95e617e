"""The same miniature run that the cluster's tests use."""

from tests.cluster.conftest import prepared, ray_session, tiny_run

__all__ = ["prepared", "ray_session", "tiny_run"]
