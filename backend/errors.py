"""The one exception that is meant for users, and the one that means "stopped on request"."""


class SprigError(Exception):
    """Bad input or usage: one sentence that says what is wrong and what to do about it."""


class Cancelled(Exception):
    """Raised by a progress callback to stop the work; nothing has been written when it arrives."""


def no_progress(fraction: float, text: str) -> None:
    """The default progress callback: does nothing. A callback raises `Cancelled` to stop the work."""
