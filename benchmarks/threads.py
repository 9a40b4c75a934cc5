"""Two OpenMP threads for every benchmark. Import this first: OpenMP and torch read it when they are loaded."""

import os

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the product sets it: a busy machine slows both sides alike
