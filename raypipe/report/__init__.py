"""The report of a search, evaluation/report.html, and the tables that the commands print."""
