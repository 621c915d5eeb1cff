"""The pack's errors: each message is one sentence for the user, with what was expected and what was found.

A leaf: every room may import it.
"""


class I2VError(Exception):
    """Base of all errors that the pack raises on purpose."""

    def __init_subclass__(cls) -> None:
        # ComfyUI shows the module before the message: the pack's name says more than its folder.
        cls.__module__ = "i2v_tensorrt"


class InputError(I2VError):
    """A value from a widget, a socket or a command line is refused."""


class CheckpointError(I2VError):
    """A model folder is missing, foreign, damaged or inconsistent."""


class EngineError(I2VError):
    """An engine cannot be built, found, loaded or trusted."""


class DamagedEngineError(EngineError):
    """A file of an engine is missing, unreadable or different from its manifest."""


class OtherVersionError(EngineError):
    """An engine was written here by another version of the pack, which may come back."""


class MissingEngineError(EngineError):
    """No engine fits the request, and the policy forbids another way."""


class BackendUnavailableError(EngineError):
    """A backend's library is missing or does not serve this device."""


class BudgetError(I2VError):
    """A clip needs more memory than there is; the sentence names sizes that would fit."""


class StorageError(I2VError):
    """A file could not be written or read; nothing half-written was left."""
