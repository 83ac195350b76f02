"""Named memories that outlive the process: a ledger in SQL, which is the truth, and snapshots, which are a cache."""

from typing import TYPE_CHECKING, Any

from remanence.errors import StoreError

if TYPE_CHECKING:
    from remanence.store.store import Store as Store


class _Lacking(StoreError, ImportError):
    """An extra is not installed."""


try:
    import alembic  # noqa: F401
    import sqlalchemy  # noqa: F401
except ModuleNotFoundError as error:
    raise _Lacking(f'a store needs {error.name}: pip install "remanence[store]"') from error


def __getattr__(name: str) -> Any:
    # A store stands on torch, which takes seconds to import; its ledger does not.
    if name == "Store":
        from remanence.store.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
