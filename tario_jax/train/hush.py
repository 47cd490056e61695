"""What Orbax and TensorStore print of a save that failed: pages, beside the one line that says it."""

import logging
import sys
import warnings

_LOGGERS = "absl", "asyncio"
_CLOSED = "Event loop is closed"  # writes that were under way when the first of them failed
_WRITES = "async_serialize"  # and their coroutines, which nobody awaits any more


class Hush:
    """Between `begin` and `end` such a failure is not printed; it still is raised where the save is waited for."""

    def begin(self) -> None:
        self._before = sys.unraisablehook
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._is_news)
        sys.unraisablehook = self._heard
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", f"coroutine '.*{_WRITES}", RuntimeWarning)

    def end(self) -> None:
        self._warnings.__exit__(None, None, None)
        sys.unraisablehook = self._before
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._is_news)

    def _is_news(self, record: logging.LogRecord) -> bool:
        ours = record.name == "absl" and "orbax" in record.pathname or record.name == "asyncio"
        return not (ours and record.exc_info)

    def _heard(self, unraisable) -> None:
        told = _CLOSED in str(unraisable.exc_value) or _WRITES in getattr(unraisable.object, "__qualname__", "")
        if not told:
            self._before(unraisable)
