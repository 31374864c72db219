"""Adapters over the model of one engine, as clients and operators meet them."""
