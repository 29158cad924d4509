"""evaluation/report.html: what a search found, on one page that needs no other file."""
