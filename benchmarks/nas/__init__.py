"""Architecture search against its paper's claims."""
