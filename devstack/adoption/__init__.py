"""Looking at somebody's project, and writing the ``invoke.yaml`` that it needs. Its code is read, never run."""
