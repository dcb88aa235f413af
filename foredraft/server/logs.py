"""Logs: one JSON object a line. They hold no text of requests or responses, no file paths and no stack traces."""

from __future__ import annotations

import json
import logging
import sys
import time
from types import TracebackType
from typing import Any

LOGGER = logging.getLogger("foredraft.server")


class JsonLines(logging.Formatter):
    """A record as a line of JSON; an exception is written as its type and the foredraft functions in its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower()}
        fields = getattr(record, "fields", None)
        if fields is not None:
            line |= {"event": record.msg} | fields
        else:
            # another library's record: its format string only, because the arguments may hold private text
            line |= {"event": record.name, "message": str(record.msg).partition("\n")[0]}
        if record.exc_info and record.exc_info[0] is not None:
            line |= {"error": record.exc_info[0].__name__, "where": functions(record.exc_info[2])}
        return json.dumps(line)


def functions(trace: TracebackType | None) -> list[str]:
    """The last 8 foredraft functions of a traceback, innermost last, as "module.function:line"."""
    found = []
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("foredraft."):
            found.append(f"{module}.{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return found[-8:]


def log(event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Write one line."""
    LOGGER.log(level, event, extra={"fields": fields}, exc_info=error)


def configure() -> None:
    """Send the logs of the server, uvicorn and asyncio to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    for name in ("foredraft.server", "uvicorn", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "foredraft.server" else logging.WARNING)
