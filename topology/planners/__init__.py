"""One file for each algorithm: a graph and a request in, a plan or None out."""
