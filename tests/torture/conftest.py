"""The store and the plan of the unit tests, for those in which something goes wrong."""

from ..unit.engine_builder.conftest import plan, store

__all__ = ["plan", "store"]
