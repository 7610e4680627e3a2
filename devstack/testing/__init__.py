"""What other projects' tests get from a stack: the pytest plugin, and databases cloned from a template.

The plugin itself (:mod:`devstack.testing.plugin`) is loaded by every pytest run of an environment that this package is
installed in, and imports nothing of the engine until a fixture is asked for.
"""
