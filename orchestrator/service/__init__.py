"""The use cases: submit, start, pause, resume, cancel, and everything that is looked at."""
