"""A rank ends with its launcher, also when that is killed and cannot say so."""

import os
import sys
import threading
import time

LOOK_EVERY = 1.0  # seconds


def end_with_launcher() -> None:
    """In a rank that torchrun or ``accelerate launch`` started, watch for its end. Nothing is lost: a block counts when its
    record is written, and what is half-written is drawn again."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True, name="kts-orphan").start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOK_EVERY)
    print("kts: the launcher has ended; run the same command again to resume.", file=sys.stderr, flush=True)
    os._exit(1)  # from a thread, and while the others may be in the middle of a network call
