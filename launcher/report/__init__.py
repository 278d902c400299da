"""The report of a run: from its record to numbers, from numbers to words and pictures."""
