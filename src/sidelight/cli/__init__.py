"""What each command of the CLI takes and does: ``add_NAME`` and ``run_NAME``, in the module that ``cli.MODULES`` names.

Heavy modules are imported by the function that needs them.
"""
