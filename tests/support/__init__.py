"""What several test files share: networks, cases, made-up stores, processes, a browser."""
