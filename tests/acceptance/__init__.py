"""Whole runs against the cloud named by OS_CLOUD (`make acceptance`)."""
