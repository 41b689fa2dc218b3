"""Hidden states on disk: packed, without padding, one copy of each text.

<store_dir>/<fingerprint>/
    key.json        what the states depend on, readable
    plan.npz        order (S,) and lengths (S,): fixed before the first forward pass
    tokens.bin      (N, d) in the store's precision, sentences in the plan's order
    chunks.jsonl    one line a finished chunk: a killed run goes on behind the last
    manifest.json   written last: where it stands the store is complete, where it is missing there is no store
"""

from glot.states.store.layout import Manifest, StoreKey
from glot.states.store.reader import StoredTokens, open_store
from glot.states.store.writer import StorePlan, write_stores

__all__ = ["Manifest", "StoreKey", "StorePlan", "StoredTokens", "open_store", "write_stores"]
