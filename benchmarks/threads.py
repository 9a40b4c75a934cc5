"""Two OpenMP threads for every benchmark. Import this first: OpenMP and torch read it when they are loaded.

Import `peer` next, before anything that loads torch. Dem Bones has an OpenMP library of its own, which then keeps its
default: threads that spin while they wait, more than twice as quick for it on a quiet machine. Ours spin for
microseconds only, as the program sets it when it loads torch. On a busy machine spinning costs Dem Bones dearly, so
time on a quiet one.
"""

import os

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")
