"""`chronus`: the command line of the time-travel disk, one module a verb."""
