"""rebuildctl."""
