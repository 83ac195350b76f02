"""Named memories that outlive the process: a ledger in SQL, which is the truth, and snapshots, which are a cache."""

from remanence.store.store import Store as Store
