"""What happens to the tests when the machine is changed: every mutant of `supervise/_core` that mutmut can think of."""
