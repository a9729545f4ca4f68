"""Callbacks for other libraries' trainers, one module per framework; importing a module imports its framework."""
