"""What a teacher is, and every kind of teacher. Imports nothing from `pipeline`."""
