"""Alembic's scripts. Each must stay compatible with the code that still runs while it is applied."""
