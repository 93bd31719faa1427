"""Meeting again after a restart, at a place where the dead have left nothing.

When a process dies, ``torchrun`` ends the others and starts all of them again, and they meet
through the same store as before. What the dead wrote there is still in it, and who comes first may
take a dead process's address for a living one's.
"""

import time
import uuid

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

PAUSE = 0.02  # seconds between two looks at the store
PATIENCE = 600.0  # seconds for all processes to arrive


def fresh_store(store: Store, rank: int, count: int, patience: float = PATIENCE) -> PrefixStore:
    """A part of ``store`` that belongs to this start of ``count`` processes alone.

    The first process thinks of a name. Each other one repeats the name that it finds, with a word
    of its own; the first one lists the words that came with its name. Who finds its own word in the
    list of a name knows that this name was given by somebody who is alive.

    Args:
        store: what all of them see, perhaps with what an earlier start left.
        rank: of this process, from 0.
        count: how many there are.
        patience: seconds to wait for the others.

    Raises:
        RuntimeError: the others did not come.
    """
    deadline = time.monotonic() + patience
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("start", own)
    while time.monotonic() < deadline:
        if rank == 0:
            words = [_read(store, f"start/{other}") for other in range(1, count)]
            if all(word.startswith(own) for word in words):
                store.set(f"start/{own}", " ".join(words))
                return PrefixStore(own, store)
        elif name := _read(store, "start"):
            word = f"{name}:{own}"
            store.set(f"start/{rank}", word)
            if word in _read(store, f"start/{name}").split():
                return PrefixStore(name, store)
        time.sleep(PAUSE)
    raise RuntimeError(f"not all of {count} processes came within {patience:g} s")


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
