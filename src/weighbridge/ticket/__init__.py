"""The record every decision writes to."""

from weighbridge.ticket.record import Ticket

__all__ = ["Ticket"]
