"""The lab's network: namespaces, cables and what they do to frames."""
