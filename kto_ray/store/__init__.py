"""The system of record: everything else reconciles to what these tables say."""

from kto_ray.store.database import Store, open_store, store_of

__all__ = ["Store", "open_store", "store_of"]
