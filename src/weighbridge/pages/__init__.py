"""HTML for people: one shell and one set of charts for all reports."""
