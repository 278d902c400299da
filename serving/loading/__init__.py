"""serve.yaml is read, checked and watched."""
