"""The two ways a call can fail that are not bugs."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names the argument, what was got and what was expected. The command line prints it
    after ``gankernels: error:`` and exits with 2; a library caller can catch it as a :class:`ValueError`.
    """


class ImplementationUnavailable(RuntimeError):
    """A forced implementation of an op cannot run here; the message says why."""
