"""Draw groundings and scores."""
