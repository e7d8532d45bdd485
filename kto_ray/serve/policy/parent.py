"""Ends vLLM's processes with the replica that started them.

A replica that is killed, by the kernel for memory or by Ray for its time being over, leaves its engine behind: it waits
for requests for ever and holds the model's memory, on a GPU all of it, which the next replica then lacks. So each
process of the engine watches its parent, which costs a thread that sleeps. vLLM installs this as it does `cpu`.
"""

import logging
import multiprocessing
import os
import threading

log = logging.getLogger(__name__)
NAME = "ends-with-parent"


def register() -> None:
    """Watch the parent, where `multiprocessing` started this process (a replica itself it did not). Harmless when
    repeated."""
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == NAME for thread in threading.enumerate()):
        return

    def watch() -> None:
        parent.join()
        log.critical("process %s, which started this one, has ended, and so does this", parent.pid)
        os._exit(1)  # no clean end: whoever would hear of it is gone

    threading.Thread(target=watch, name=NAME, daemon=True).start()
