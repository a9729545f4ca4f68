"""What a network is made of: roles of parameters, hidden units, the graph of its layers, populations."""
