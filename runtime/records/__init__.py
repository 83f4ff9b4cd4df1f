"""What a run writes down, what its entries add up to, and how it goes back to an earlier state."""
