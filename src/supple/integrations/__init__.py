"""Callbacks for other people's trainers, one module a framework; each needs that framework when it is imported."""
