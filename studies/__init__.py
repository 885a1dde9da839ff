"""Hold studies of published claims on the synthetic world. Not part of the package that users install."""
