"""The laboratory: problems that change while they are learned, and the one loop that trains on them."""
