"""The record that every decision about a request writes to, and where such records are kept."""

from weighbridge.ticket.record import Leg, Ticket, prompt_hash
from weighbridge.ticket.store import TICKETS, TicketStore

__all__ = ["TICKETS", "Leg", "Ticket", "TicketStore", "prompt_hash"]
