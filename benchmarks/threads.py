"""Two OpenMP threads for every benchmark. Import this first: OpenMP and torch read it when they are loaded."""

import os

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")
