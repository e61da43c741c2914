"""What a machine can do (`doctor`), where a step's time goes (`profiling`), and what a run holds in memory (`memory`)."""
