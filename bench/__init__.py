"""The benchmarks: one instrument for every speed figure that this project states.

`python -m bench.run` starts the systems under test one beside the other, sends them the same
checked load in ABBA order and prints CPU per request, CPU per SSE chunk, added time to first
token and memory, each also as a ratio to the bare anchor. `bench/README.md` says how to read it.
"""

import gateway as gateway  # first of all that is ours: it finds the compiled form
