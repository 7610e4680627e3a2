"""Is the stack well, and if not, why and what mends it."""

from devstack.health.examination import examine
from devstack.health.records import Check, Health, ServiceHealth, Verdict

__all__ = ["Check", "Health", "ServiceHealth", "Verdict", "examine"]
