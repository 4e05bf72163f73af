"""Runs over seeds and settings: grids, records, evaluation and attacks of finished folders."""
