"""The laboratory: supervised problems that change from task to task, and the loop that trains on them."""
