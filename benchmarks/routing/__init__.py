"""What governed training costs, against the plain step, other methods and the arithmetic that a mask leaves.

`python -m benchmarks.routing` measures; `--help` says how. Modules, from the bottom:

models      the networks that are trained            workload    a network, its batches and its losses
cases       who may shape what                       methods     one training step by each method
peers       the other methods, and what they compute timing      pairs of steps
arithmetic  operations counted, and the limit        memory      peak memory of a step
figures     what is measured of a method in a case   core, grid  the two tables
bars        what must hold                           report      tables, results file; plots: pictures
"""

import os

# The profiler that records memory announces itself, and each block that it has not seen made, on standard
# error. Both are read when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
