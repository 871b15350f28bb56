"""JSON log lines on standard error, one form for the operator and the agent and for the libraries in them."""

import logging
import sys

import structlog
from structlog.typing import Processor

# kopf would tell every handled event; aiohttp and asyncio speak of warnings only.
QUIET = ("kopf", "aiohttp", "asyncio")
SHARED: tuple[Processor, ...] = (
    # What the work at hand is about (LivePatch, pod, node): bound once, by context, so that no line can forget it.
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
)


def configure_logs(**always: str) -> None:
    """Send structlog and the standard library's logging through one JSON renderer.

    Args:
        always: fields of every line from here on, in this context and the tasks that it starts.
    """
    structlog.configure(
        processors=[*SHARED, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(**always)
