"""The engine behind the tasks: importable without Invoke's command line, knows no flags."""

__version__ = "0.1.0"
