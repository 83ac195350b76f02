"""Errors that name the cause and the remedy. All derive from `RemanenceError`; bad values are also `ValueError`."""


class RemanenceError(Exception):
    """Base of every error that Remanence raises on purpose."""


class InvalidInputError(RemanenceError, ValueError):
    """What was given cannot be written, read or configured; nothing was changed."""


class MemoryMismatchError(RemanenceError, ValueError):
    """The memory was written by another model, or has another shape, dtype or device than this model's."""


class MemoryFileError(RemanenceError, ValueError):
    """The file is truncated, damaged or not a memory."""


class MemoryConflictError(RemanenceError):
    """The file was saved again since the memory was loaded from it; nothing was changed."""


class CorruptMemoryError(RemanenceError, ValueError):
    """The memory holds numbers that are not finite."""


class UnsupportedModelError(RemanenceError, ValueError):
    """The model's family or one of its settings is not supported."""


class CheckpointError(RemanenceError, ValueError):
    """A checkpoint directory lacks a file, a tensor, or holds a tensor of the wrong shape."""


class SetupError(RemanenceError):
    """A base model could not be fetched or put into its place; what was there before still is."""


class StoreError(RemanenceError):
    """The store cannot do it: its database or its files are not there, full, read-only or of a newer version."""


class NotFoundError(StoreError, LookupError):
    """There is no such memory, write or owner; of another owner's, nothing more is said."""


class ConflictError(StoreError):
    """The memory has another version than the caller named, or the name is taken; nothing was changed."""


class QuotaError(StoreError):
    """The owner's quota does not allow it; nothing was changed."""
