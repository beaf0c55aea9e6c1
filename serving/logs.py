"""Structured logs: one JSON object a line, with the facts that the caller chose and nothing else."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

import orjson

MAX_LOG_BYTES = 50_000_000
KEPT_LOG_FILES = 3


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # text that is no Unicode, such as some names of files; a number beyond 64 bits
            return json.dumps(line, default=str)


def log_to(path: Path, *, level: str) -> None:
    """Send what `serving` logs in this process to one rotating file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=MAX_LOG_BYTES, backupCount=KEPT_LOG_FILES)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("serving")
    logger.setLevel(level.upper())
    logger.propagate = False
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
