"""The report of a run: its record becomes numbers, and the numbers become words and pictures."""
