"""Files: tables, growing results, run stamps, locks, whole or not at all."""
