"""The coordinator's decisions, as pure functions and small values: no clock, no store, no thread.

``tuner`` puts them in order: one knob (plan, fusion, codec) is changed at a time and judged by
what is measured afterwards.
"""
