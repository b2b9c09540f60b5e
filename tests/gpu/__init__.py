"""What of the project holds on a GPU: ``make test-gpu``."""
