"""Base models by short name: what they are, where they lie, and how they get there once. Imports no torch."""

from remanence.bases.folder import find_base, verify, weights_digest
from remanence.bases.prepare import OtherWeightsWarning, setup
from remanence.bases.registry import BASES, DEFAULT, Base, base_folder, base_of

__all__ = [
    "BASES",
    "DEFAULT",
    "Base",
    "OtherWeightsWarning",
    "base_folder",
    "base_of",
    "find_base",
    "setup",
    "verify",
    "weights_digest",
]
