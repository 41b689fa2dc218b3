"""Hidden states on disk: packed, without padding, one copy per distinct text.

<store_dir>/<fingerprint>/
    key.json        what the states depend on, readable
    plan.npz        order (S,) and lengths (S,), fixed before the first forward pass
    tokens.bin      (N, d) in the store's precision, sentences in the plan's order
    chunks.jsonl    one line per finished chunk, so that a killed run continues after the last
    manifest.json   written last: a store is complete exactly if it exists
"""

from glot.states.store.layout import Manifest, StoreKey
from glot.states.store.reader import StoredTokens, open_store
from glot.states.store.writer import StorePlan, write_stores

__all__ = ["Manifest", "StoreKey", "StorePlan", "StoredTokens", "open_store", "write_stores"]
