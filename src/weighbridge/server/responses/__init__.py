"""Responses that outlive their connection: kept, found again, continued, and made in the background."""
