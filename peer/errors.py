"""The error tree: who is to blame decides what happens.

    MurmurateError
    ├── ConfigError           the user must change something    the command ends with exit code 2
    ├── LocalError            this machine cannot do it         the command ends with exit code 1
    │   └── DivergedError     its training went to infinity     the command ends with exit code 3
    └── RemoteError           another peer is at fault          a refusal and a mark against it; never stops a peer

A broken promise of our own code is an `assert`, and crashes.
"""


class MurmurateError(Exception):
    """Base of every error this package raises on purpose; its text says what to do."""

    exit_code = 1
    """Of the command that it ends."""


class ConfigError(MurmurateError):
    """The configuration or the command line asks for something unknown or impossible."""

    exit_code = 2


class LocalError(MurmurateError):
    """This machine cannot do what was asked: port in use, full disk, damaged snapshot, diverged training."""


class DivergedError(LocalError):
    """The model is not finite any more."""

    exit_code = 3


class RemoteError(MurmurateError):
    """Another peer sent something that is refused: malformed, too large, foreign."""
