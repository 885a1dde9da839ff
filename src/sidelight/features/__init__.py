"""Extract, store and open features."""
