"""A plan for people: tables, JSON, a page."""
