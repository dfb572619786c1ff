"""Pure knowledge: no I/O, no clock, no ORM. Time comes in as an argument."""
