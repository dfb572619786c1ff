"""The asyncio engine that drives all jobs of one project: claim → check → send → watch → verify → record.

There is exactly one driver a project at any time, by its lease. Start reading at `project.py`.
"""
