"""Errors a user can meet. Each message is one sentence: what, what was found, what was expected, what to do."""


class CtsegError(Exception):
    """Base of every error that is shown to a user as one sentence, without a traceback."""


class InputError(CtsegError):
    """A file the user gave cannot be used: missing, unreadable, not an image, not a CT in HU."""


class GeometryError(InputError):
    """The image's grid cannot be placed in space, or a mask does not lie on its image's grid."""


class OutputError(CtsegError):
    """A result cannot be written where the user asked for it."""


class BundleError(CtsegError):
    """A bundle is unknown, incomplete, untrained, or its weights are not the ones it names."""


class ConfigError(CtsegError):
    """A configuration value is unknown or cannot work; the message lists the known ones."""


class DeviceError(CtsegError):
    """The device asked for is not there."""


class ResourceError(CtsegError):
    """The work foreseen needs more memory or disk than the machine has."""


class LedgerError(CtsegError):
    """The split ledger was edited in conflict with what was drawn, or cannot be read."""
