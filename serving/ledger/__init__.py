"""The ledger: every routing decision, kept in bounded files, to be explained and replayed.

A ledger is a directory with segments ``decisions-<worker>-<number>.jsonl``. Each line is one
record in JSON (``trainmesh.serving.decide.record``). A worker only ever appends to its newest
segment; a line that a crash cut short is skipped by readers. The oldest segments are removed, so
a ledger never takes more than ``segments * segment_bytes`` for each worker.
"""
