"""From ring records to events, to the store, and back out."""
