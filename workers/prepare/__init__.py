"""Preparing plans: what they speak of looked up, every server judged, all published at once."""
