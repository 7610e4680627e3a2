"""What the running services measure: samples of their counters, and the figures between two of them.

Nothing here judges: thresholds belong to the health checks.
"""
