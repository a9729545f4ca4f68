"""Infrastructure of runs: folders on disk, parallel sweeps, statistics over seeds, and charts."""
