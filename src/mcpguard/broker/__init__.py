"""The only code that runs with privilege."""
