"""The same miniature run that the cluster's tests use."""

from tests.cluster.conftest import prepared, tiny_run

__all__ = ["prepared", "tiny_run"]
