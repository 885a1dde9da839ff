"""Turn predictions into groundings."""
