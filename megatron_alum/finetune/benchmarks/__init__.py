"""Tasks and their data: from files to features, from outputs to predictions and the official scores."""
