"""Damaged and hostile files against every loader: no crash, no hang, no write outside."""
