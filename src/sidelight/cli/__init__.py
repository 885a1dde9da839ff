"""The command line: each command is one typed function, and its docstring holds the help texts.

``main.COMMANDS`` says which module holds which command. Heavy packages are imported by the function that needs them.
"""
