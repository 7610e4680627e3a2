"""Log lines as JSON, one object a line, on standard output."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone


class JsonFormatter(logging.Formatter):
    """``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, then those of ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure() -> None:
    """Write every log line of this process as JSON, those of uvicorn included."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    # a request is logged by the application, with its duration
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False


def set_level(level: str) -> None:
    """The least level that is written, by its name."""
    root = logging.getLogger()
    root.setLevel(level)
    for handler in root.handlers:
        # uvicorn's loggers have a level of their own, and pass the root's by
        handler.setLevel(level)
