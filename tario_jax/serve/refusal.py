"""What a client did wrong, and the status that says so."""


class Refusal(Exception):
    """Ends a request with this status; the reason is one line for the client."""

    def __init__(self, status: int, reason: str, *, retry_after_s: float | None = None):
        super().__init__(reason)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s
