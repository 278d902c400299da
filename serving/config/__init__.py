"""What may be written in serve.yaml: ``load`` reads and checks it, ``reload`` watches it."""
