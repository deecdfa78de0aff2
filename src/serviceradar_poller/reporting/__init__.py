"""What core is told, when, and what happens while core can't hear it."""
