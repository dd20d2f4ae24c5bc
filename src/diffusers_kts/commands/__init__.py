"""The commands of ``kts``, one a file: each parses its options, calls the job, prints the outcome."""
