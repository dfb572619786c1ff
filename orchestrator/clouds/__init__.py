"""Clouds: one protocol, the OpenStack client behind it, sign-in, configuration and pacing."""
