"""Slow, obvious forms of what the library computes, transcribed from the papers; fast paths must agree with them."""
