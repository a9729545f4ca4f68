"""Running things: folders of runs on disk, many runs at once, statistics over seeds, and charts."""
