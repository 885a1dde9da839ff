"""Studies of published claims on the synthetic world; not part of the package that users install."""
